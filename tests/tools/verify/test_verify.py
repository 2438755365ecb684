"""`ldmrt verify` and the certificate: what is kept, what is replayed, what a machine without torch can say."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from safetensors.torch import load_file, save_file

import ldmrt.runtime
from ldmrt.runtime import Bundle, Certificate, LdmrtError, LdmrtWarning

WORKFLOW = Path(__file__).parents[3] / "docs" / "reference" / "verify-bundle.yml"
REPLAY = """
import sys
sys.modules["torch"] = None
from ldmrt.tools.cli import main
sys.argv = ["ldmrt", "verify", *sys.argv[1:]]
main()
"""


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to write into."""
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


@pytest.mark.slow(minutes=0.07)
@pytest.mark.usefixtures("with_openvino")
def test_files(ldmrt: Any, certified: Path, checkpoint: Path, tmp_path: Path) -> None:
    names = {option: tmp_path / f"certificate.{option}" for option in ("json", "junit", "html")}
    ran = ldmrt("verify", certified, "--against", checkpoint, *(w for o, p in names.items() for w in (f"--{o}", p)))
    assert ran.code == 0, ran.err
    made = Certificate.from_json(json.loads(names["json"].read_text()))
    assert made.within
    assert {one.backend for one in made.drifts} == {"onnxruntime", "openvino"}
    assert made.about["request"]["steps"] == len(made.drifts) / 2 == 20
    assert {"text_encoder", "unet", "vae_decoder", "vae_encoder"} <= {one.component for one in made.figures}
    suite = ElementTree.parse(names["junit"]).getroot()
    assert (int(suite.attrib["tests"]), suite.attrib["failures"]) == (len(suite), "0")
    assert len(suite) == 1 + len(made.figures) + len(made.drifts) + len(made.pictures)
    assert "<img" in names["html"].read_text()


def test_side(ldmrt: Any, changed: Path, checkpoint: Path) -> None:
    """Of the picture that is recorded, for engines of that size alone: what is stored is replayed."""
    ran = ldmrt("verify", changed, "--against", checkpoint, "--side", 24, "--store")
    assert ran.code == 0, ran.err
    opened = Bundle.open(changed)
    assert opened.certificate is not None
    assert opened.certificate.about["request"]["width"] == 24
    assert opened.reference.trajectory.images.shape == (1, 24, 24, 3)
    assert {one.case for one in opened.certificate.figures if one.component == "unet"} >= {"batch 1 at 24x24"}
    assert ldmrt("verify", changed).code == 0
    ran = ldmrt("verify", changed, "--against", checkpoint, "--side", 25)
    assert (ran.code, "invalid side; expected a multiple of 2 pixels; found 25" in ran.error) == (2, True)
    assert "--side needs --against" in ldmrt("verify", changed, "--side", 24).error


def test_open_shows_the_certificate(certified: Path, recwarn: pytest.WarningsRecorder) -> None:
    pipeline = ldmrt.runtime.open(certified)
    pipeline.close()
    assert pipeline.certificate is not None
    assert pipeline.certificate.within
    assert not [one for one in recwarn if issubclass(one.category, LdmrtWarning)]


def test_inspect_says_it(ldmrt: Any, certified: Path, bundle: Path) -> None:
    assert "figures within tolerance on onnxruntime" in ldmrt("inspect", certified).out
    assert "certificate: it has no parity certificate" in ldmrt("inspect", bundle).out


def test_open_warns_where_there_is_none(bundle: Path) -> None:
    with pytest.warns(LdmrtWarning, match="it has no parity certificate; next: ldmrt verify"):
        ldmrt.runtime.open(bundle).close()


def test_open_warns_where_it_does_not_hold(changed: Path) -> None:
    manifest = json.loads((changed / "ldmrt.json").read_text())
    manifest["certificate"]["about"]["bundle"]["unet/model.onnx"] = "0" * 64
    (changed / "ldmrt.json").write_text(json.dumps(manifest))
    with pytest.warns(LdmrtWarning, match="unet/model.onnx is not the file that was certified"):
        ldmrt.runtime.open(changed).close()


@pytest.mark.slow(minutes=0.05)
def test_replay_without_torch(certified: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", REPLAY, str(certified)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    for backend in ("onnxruntime", "openvino"):
        lines = [line for line in ran.stdout.splitlines() if f" {backend} " in line and " ok " in line]
        assert len(lines) == 7  # tokenizer, text encoder, VAE encoder and its parts, scaling factor, rows, the picture


def test_the_workflow_runs(ldmrt: Any, certified: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text())
    steps = workflow["jobs"]["verify"]["steps"]
    (command,) = [step["run"] for step in steps if step.get("run", "").startswith("ldmrt")]
    monkeypatch.chdir(tmp_path)
    ran = ldmrt(*shlex.split(command.replace("$BUNDLE", str(certified)))[1:])
    assert ran.code == 0, ran.err
    assert sorted(path.name for path in tmp_path.glob(steps[-1]["with"]["path"])) == [
        "verify.html",
        "verify.json",
        "verify.xml",
    ]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_bisect_names_the_module(precision: str, ldmrt: Any, certified: Path, half: Path, copy: Path) -> None:
    exported = certified if precision == "fp32" else half
    state = load_file(copy / "unet" / "diffusion_pytorch_model.safetensors")
    state["mid_block.resnets.0.conv1.bias"] += 0.1
    save_file(state, copy / "unet" / "diffusion_pytorch_model.safetensors")
    ran = ldmrt("verify", exported, "--against", copy, "--bisect", "unet")
    assert ran.code == 1
    first = ran.out[ran.out.index("the first past") :].splitlines()[2]
    assert "mid_block.resnets.0.conv1" in first


def test_bisect_is_of_a_component_of_a_checkpoint(ldmrt: Any, certified: Path, copy: Path) -> None:
    assert "no component 'vea'" in ldmrt("verify", certified, "--against", copy, "--bisect", "vea").error
    assert "--bisect needs --against" in ldmrt("verify", certified, "--bisect", "unet").error


def test_replay_finds_a_changed_network(ldmrt: Any, changed: Path) -> None:
    """As a driver, a build or a bit may change it; the manifest's hashes are made to agree."""
    from ...support.damage.bundle_faults import truthful, weight

    weight("unet", "conv_in.bias", lambda value: value + 0.01)(changed)
    truthful(changed)
    ran = ldmrt("verify", changed)
    assert ran.code == 1
    assert "row 0 (onnxruntime): forced" in ran.err


@pytest.mark.parametrize("damage", ["none", "missing", "torn", "foreign"])
def test_what_cannot_be_measured(ldmrt: Any, changed: Path, bundle: Path, damage: str) -> None:
    (reference,) = changed.glob("reference-*.npz")
    if damage == "none":
        assert "the bundle has no certificate" in ldmrt("verify", bundle).error
        return
    if damage == "missing":
        reference.unlink()
    if damage == "torn":
        reference.write_bytes(reference.read_bytes()[:-100])
    if damage == "foreign":
        reference.write_bytes(b"PK not a reference")
    assert reference.name in ldmrt("verify", changed).error
    with pytest.raises(LdmrtError):
        _ = Bundle.open(changed, check=False).reference.cases


def test_an_unchanged_export_keeps_it(ldmrt: Any, changed: Path, checkpoint: Path) -> None:
    before = {path.name: path.read_bytes() for path in changed.glob("*.*")}
    ran = ldmrt("export", checkpoint, changed)
    assert ran.code == 0
    assert "onnxruntime" not in ran.err  # nothing was measured
    assert {path.name: path.read_bytes() for path in changed.glob("*.*")} == before


def test_no_verify(ldmrt: Any, checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    assert ldmrt("export", checkpoint, copy, "--no-verify").code == 0
    assert Bundle.open(copy).certificate is None


def test_store_wants_a_checkpoint(ldmrt: Any, certified: Path) -> None:
    assert "--store needs --against" in ldmrt("verify", certified, "--store").error


def test_a_half_precision_bundle_is_held_to_its_own_tolerance(half: Path) -> None:
    made = Bundle.open(half).certificate
    assert made is not None
    assert {one.limit for one in made.figures if one.component == "unet"} == {1e-2}
    assert 2e-5 < max(one.relative for one in made.figures if one.component == "unet") < 1e-2


@pytest.mark.slow  # exports that no other test shares; test_precision.py exports the U-Net alone
@pytest.mark.parametrize(
    ("precision", "kinds"),
    [
        ("unet=bf16", ["fp32", "bf16", "fp32", "fp32"]),
        ("bf16,text_encoder=fp32", ["fp32", "bf16", "bf16", "bf16"]),
    ],
)
def test_bfloat16_where_no_backend_runs_it(
    precision: str,
    kinds: list[str],
    ldmrt: Any,
    checkpoint: Path,
    bundle: Path,
    tmp_path: Path,
    shared_exports: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The graphs are checked, PyTorch's bfloat16 is measured in their place, and all of that is said.

    OpenVINO, once it is installed, runs them.
    """
    shutil.copytree(bundle, tmp_path / "brief")  # what stays in float32 is reused
    ran = ldmrt("export", checkpoint, tmp_path / "brief", "--precision", precision)
    assert ran.code == 0, ran.err
    (line,) = (line for line in ran.err.splitlines() if "cannot run unet in bf16" in line)
    assert line.endswith("the graphs are checked but not run; PyTorch is measured instead")
    opened = Bundle.open(tmp_path / "brief")
    assert [opened.precision(name) for name in opened.components] == kinds
    assert all((opened.precision(name) == "bf16") == (len(opened.models(name)) == 1) for name in opened.components)
    made = opened.certificate
    assert made is not None
    assert {(one.backend, one.limit) for one in made.figures if one.component == "unet"} == {("pytorch", 8e-2)}
    assert {one.limit for one in made.figures if one.component == "text_encoder"} == {2e-5}
    assert 1e-3 < max(one.relative for one in made.figures if one.component == "unet") < 8e-2
    assert opened.certificate_issues == ["its graphs were checked, but no backend has run them"]
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "openvino", None)
        error = ldmrt("verify", opened.path).error
    assert (
        "no backend can run the bundle; found onnxruntime cannot run unet in bf16 (Could not find an implementation"
        in error
    )
    assert ldmrt("verify", opened.path, "--backend", "openvino").code == 0
