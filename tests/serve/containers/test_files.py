"""The files of containers pass public linters, and agree with one another and with the command that they run."""

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from ldmrt.serve.http.running import LAST_ANSWERS
from ldmrt.tools.commands.serving.serve import GRACE, serve

from ...tools.test_packaging import closure, plain

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "tools" / "containers"
DOCKERFILES = sorted(FOLDER.glob("*.Dockerfile"))
USER, PORT = 10001, 7860
HEAVY = {"torch", "transformers", "diffusers", "onnx", "onnxscript", "tensorrt-rtx-cu13"}
KUBERNETES = "1.37"
PAGE = (ROOT / "docs" / "serving" / "containers.md").read_text(encoding="utf-8")


def instructions(file: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, without comments."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def last_stage(file: Path) -> dict[str, str]:
    """The instructions of the image itself."""
    every = instructions(file)
    start = max(place for place, (name, _) in enumerate(every) if name == "FROM")
    return dict(every[start:])


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8")))


def deployments() -> list[dict[str, Any]]:
    return [one for one in documents() if one["kind"] == "Deployment"]


def checked(*command: object) -> None:
    ran = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_hadolint_finds_nothing(file: Path) -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed: the dev extra brings it")
    checked(program, "--failure-threshold", "style", file)


def test_compose_file_fits_the_schema_of_the_specification() -> None:
    if find_spec("check_jsonschema") is None:
        pytest.skip("check-jsonschema is not installed: the dev extra brings it")
    checked(
        sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", FOLDER / "compose.yaml"
    )


def test_kubernetes_resources_fit_its_schemas() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="the dev extra is not installed")
    for document in documents():
        validate.validate(document, KUBERNETES, strict=True)
    broken = {**documents()[0], "speck": {}}
    with pytest.raises(validate.ValidationError):
        validate.validate(broken, KUBERNETES, strict=True)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_is_lean_and_pinned(file: Path) -> None:
    every = instructions(file)
    bases = [rest.partition(" ")[0] for name, rest in every if name == "FROM"]
    stages = {rest.split()[-1] for name, rest in every if name == "FROM" and " AS " in rest}
    assert all(re.search(r":\d", base) for base in bases if base not in stages), bases
    installed = [part for name, rest in every if name == "RUN" for part in rest.split("&&") if " install " in part]
    pips = [part for part in installed if "pip" in part.split(" install ")[0]]
    assert pips
    wanted = {word.strip("'") for part in pips for word in part.split(" install ")[1].split() if word[0] != "-"}
    assert all("-c /src/constraints.txt" in part and "--no-cache-dir" in part for part in pips)
    assert wanted - {"/src/constraints.txt"} in ({"/src[serve]"}, {"/src[serve]", "onnxruntime-gpu"})
    needed = closure("ldmrt", {"serve"})
    assert "fastapi" in needed
    assert needed & HEAVY == set()
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {plain(line.partition("==")[0]) for line in lines if "==" in line}
    assert (needed | wanted) - {"/src[serve]", "/src/constraints.txt"} - pinned == set()


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_runs_the_server_without_rights(file: Path) -> None:
    stage = last_stage(file)
    assert stage["USER"] == f"{USER}:{USER}"
    assert stage["EXPOSE"] == str(PORT)
    program, command, *words = json.loads(stage["ENTRYPOINT"])  # JSON, so no shell stands between it and signals
    assert (program, command) == ("ldmrt", "serve")
    values = serve.make_context("serve", [*words, *json.loads(stage["CMD"])]).params
    assert (values["host"], values["port"], values["bundles"]) == ("0.0.0.0", PORT, ("/bundle",))
    assert values["backend"] == ("onnxruntime-cuda" if file.name.startswith("cuda") else "auto")
    assert f":{PORT}/healthz" in stage["HEALTHCHECK"]
    assert "COPY" in stage
    assert [name for name, _ in instructions(file)].count("COPY") == 2  # the sources stay in the first stage


def test_a_build_is_given_the_sources_alone() -> None:
    ignored = [(FOLDER / f"{file.name}.dockerignore").read_text(encoding="utf-8") for file in DOCKERFILES]
    assert len(set(ignored)) == 1
    allowed = set(re.findall(r"^!(.+)$", ignored[0], re.MULTILINE))
    assert "\n*\n" in ignored[0]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    folders = set(re.findall(r'^"ldmrt(?:\.\w+)?" = "(\w+)"$', project, re.MULTILINE))
    assert allowed == folders | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}


def test_compose_serves_with_as_little_rights() -> None:
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert services.keys() == {"cpu", "cuda"}
    for name, service in services.items():
        build = service["build"]
        assert (FOLDER / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).name == f"{name}.Dockerfile"
        assert (ROOT / build["dockerfile"]).is_file()
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert [port.rpartition(":")[2] for port in service["ports"]] == [str(PORT)]
        assert [(volume["target"], volume["read_only"]) for volume in service["volumes"]] == [("/bundle", True)]
        assert int(service["stop_grace_period"].removesuffix("s")) > GRACE + LAST_ANSWERS


@pytest.mark.parametrize("deployment", deployments(), ids=lambda one: one["metadata"]["name"])
def test_a_deployment_fits_the_image_the_command_and_the_restricted_profile(deployment: dict[str, Any]) -> None:
    template = deployment["spec"]["template"]
    pod, (container,) = template["spec"], template["spec"]["containers"]
    values = serve.make_context("serve", list(container["args"])).params
    assert pod["terminationGracePeriodSeconds"] > values["grace"] + LAST_ANSWERS
    assert container["ports"] == [{"name": "http", "containerPort": PORT}]
    paths = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert paths["readiness"] == {"path": "/readyz", "port": "http"}
    assert paths["startup"] == paths["liveness"] == {"path": "/healthz", "port": "http"}
    mounted = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounted["/bundle"]["readOnly"]
    assert str(values["keys"]).startswith("/keys/")
    assert {mount["name"] for mount in mounted.values()} == {volume["name"] for volume in pod["volumes"]}
    # https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == USER
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    kinds = {next(kind for kind in volume if kind != "name") for volume in pod["volumes"]}
    assert kinds <= {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected",
                     "secret"}  # fmt: skip
    assert deployment["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()


def test_the_deployments_differ_by_the_device_alone() -> None:
    cpu, cuda = (json.loads(json.dumps(one)) for one in deployments())
    for one in (cpu, cuda):
        (container,) = one["spec"]["template"]["spec"]["containers"]
        device = one["spec"]["selector"]["matchLabels"]["device"]
        assert container.pop("image") == f"ldmrt:{device}"
        assert container.pop("resources")["limits"].get("nvidia.com/gpu") == (1 if device == "cuda" else None)
        container["args"] = [word for word in container["args"] if word not in ("--threads", "4")]
        del one["metadata"], one["spec"]["selector"], one["spec"]["replicas"], one["spec"]["template"]["metadata"]
    assert cpu == cuda


def test_the_service_and_the_policy_choose_every_deployment() -> None:
    kinds = {one["kind"]: one["spec"] for one in documents()}
    for one in deployments():
        labels = one["spec"]["template"]["metadata"]["labels"].items()
        assert kinds["Service"]["selector"].items() <= labels
        assert kinds["NetworkPolicy"]["podSelector"]["matchLabels"].items() <= labels
    assert kinds["Service"]["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]
    assert "egress" not in kinds["NetworkPolicy"]
    assert kinds["NetworkPolicy"]["policyTypes"] == ["Ingress", "Egress"]


def test_the_page_names_what_is_there() -> None:
    commands = re.findall(r"^    (?:BUNDLE=\S+ )?(docker|kubectl) (.*)$", PAGE, re.MULTILINE)
    assert len(commands) == 8
    for _, words in commands:
        for file in re.findall(r"tools/containers/\S+", words):
            assert (ROOT / file).is_file(), file
    for file in DOCKERFILES:  # its head has the page's commands
        told = re.findall(r"^#   (docker .*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(told) == 2
        assert all(f"    {line}\n" in PAGE for line in told)
    assert f"Kubernetes {KUBERNETES}" in PAGE
    for name in ("ldmrt-bundle", "ldmrt-keys"):
        assert name in (FOLDER / "kubernetes.yaml").read_text(encoding="utf-8")
        assert f"`{name}`" in PAGE
