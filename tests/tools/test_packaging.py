"""What is installed: the wheel, its bounds, and what works at the lowest of them."""

import ast
import re
import shlex
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image

from ldmrt.runtime.optional import PACKAGES

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOWEST = ROOT / "constraints-lowest.txt"
EXTRAS = PROJECT["optional-dependencies"]


def run(*command: object, cwd: Path | None = None) -> str:
    ran = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    return folder


def shipped() -> set[str]:
    """Files of the shipped models, as a wheel names them."""
    listed = run("git", "ls-files", "model/pretrained", cwd=ROOT) if (ROOT / ".git").exists() else ""
    there = [path.relative_to(ROOT).as_posix() for path in (ROOT / "model" / "pretrained").rglob("*") if path.is_file()]
    return {f"ldmrt/{name}" for name in listed.split() or there}


@pytest.mark.slow
def test_wheel_and_sdist(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert len(list(built.glob("*.tar.gz"))) == 1
    names = zipfile.ZipFile(wheel).namelist()
    assert {"ldmrt/py.typed", "ldmrt/tools/reports/report.html"} <= set(names)
    for package in ("", "model/", "export/", "runtime/", "runtime/bundle/engines/", "tools/", "tools/commands/"):
        assert f"ldmrt/{package}__init__.py" in names
    parts = {part for name in names for part in Path(name).parts}
    assert not [part for part in parts if part.startswith(("test", "benchmark", "gpu_", "results"))]
    assert {name for name in names if name.startswith("ldmrt/model/pretrained/")} == shipped()
    assert wheel.stat().st_size < 37e6  # the shipped models are 27 and 7 MB, and all else less than one

    target = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", target, wheel)
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); import ldmrt.tools.cli as c; print(c.__file__); "
    code += "import ldmrt; print(ldmrt.__file__, ldmrt.__version__); c.main()"
    shown = run(sys.executable, "-c", code, target, "--version", cwd=tmp_path)
    assert shown.count(str(target)) == 2
    assert shown.count(PROJECT["version"]) == 2


@pytest.mark.slow(minutes=2)
def test_demo_from_the_wheel(built: Path, tmp_path: Path) -> None:
    """In an environment of its own, which has the wheel and, behind it, the packages of this one without ldmrt."""
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python, ldmrt = tmp_path / "venv" / "bin" / "python", tmp_path / "venv" / "bin" / "ldmrt"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    folders = [folder for folder in sys.path if folder.endswith("-packages")]
    (site / "base.pth").write_text("\n".join(folders))  # as plain folders: what their .pth files say is not done
    (wheel,) = built.glob("*.whl")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    place = tmp_path / "empty"
    place.mkdir()
    where = run(python, "-c", "import ldmrt; print(ldmrt.__file__)", cwd=place)
    assert where.startswith(str(site))

    first = run(ldmrt, "demo", cwd=place)
    assert first == "the images: demo.png, and one by one demo/each-00.png to demo/each-23.png\n"
    assert sorted(path.name for path in place.iterdir()) == ["demo", "demo.png", "emoji128"]
    with Image.open(place / "demo.png") as image:
        assert image.size == (6 * 128 + 5 * 2, 4 * 128 + 3 * 2)

    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "torch.py").write_text("raise ImportError('No module named torch', name='torch')\n")
    (site / "a.pth").write_text(str(tmp_path / "without"))  # before base.pth, as .pth files are read in order
    second = run(ldmrt, "demo", "-o", "again.png", cwd=place)
    assert second.startswith("the images: again.png, ")
    assert (place / "again.png").read_bytes() == (place / "demo.png").read_bytes()


def test_version() -> None:
    import ldmrt

    assert ldmrt.__version__ == PROJECT["version"]
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = ldmrt.nonsense


def pip_lines() -> list[str]:
    """How docs/certificate.md, and the workflow that it names, install the runtime."""
    workflow = yaml.safe_load((ROOT / "docs" / "reference" / "verify-bundle.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["verify"]["steps"]
    certificate = (ROOT / "docs" / "certificate.md").read_text(encoding="utf-8")
    page = re.findall(r"^- run: (pip install .*)$", certificate, re.MULTILINE)
    return [*page, *(step["run"] for step in steps if step.get("run", "").startswith("pip install"))]


@pytest.mark.slow(minutes=2)
def test_the_ci_recipe_installs_from_a_checkout(tmp_path: Path) -> None:
    (tmp_path / "ldmrt").symlink_to(ROOT)
    lines = pip_lines()
    assert len(lines) == 2
    (place,) = {shlex.split(line)[2] for line in lines}
    assert place == "./ldmrt[cpu]"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", tmp_path / "site", place, cwd=tmp_path)
    assert (tmp_path / "site" / "ldmrt" / "runtime").is_dir()


def plain(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: list[str]) -> dict[str, str]:
    """Lower bounds by distribution, the extras of ldmrt itself aside."""
    found = {}
    for line in requirements:
        name, _, bound = line.partition(";")[0].partition(">=")
        if not name.startswith("ldmrt["):
            found[plain(name.partition("[")[0].strip())] = bound.strip()  # without extras of its own
    return found


# What develops and documents the project is pinned, and has no lowest versions.
USED = {extra: declared(lines) for extra, lines in EXTRAS.items() if extra not in ("dev", "docs")}
BOUNDS = {name: bound for found in (declared(PROJECT["dependencies"]), *USED.values()) for name, bound in found.items()}
# Not run on a machine without a GPU, or the same package under another name; of NNCF, resvg-py, accelerate, psutil,
# datasets and what serves over HTTP one was tried.
UNTESTED = {
    "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "cuda-bindings", "nncf", "resvg-py", "tomli",
    "av", "accelerate", "psutil", "datasets", "diffusers", "jinja2", "tensorboard", "wandb", "bitsandbytes", "ray",
    "pyarrow", "fastapi", "starlette", "pydantic", "uvicorn", "python-multipart", "prometheus-client",
    "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http", "spandrel",
}  # fmt: skip


def imported() -> set[str]:
    """Names of packages that the folders import, anywhere in a file."""
    names = set()
    for folder in ("about", "model", "export", "runtime", "serve", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            if "benchmarks" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names.add((node.module or "").partition(".")[0])
    return names - sys.stdlib_module_names - {"ldmrt", "_typeshed"}  # the latter is for type checkers


def test_every_import_is_declared_and_has_its_extra() -> None:
    assert imported() <= {name.partition(".")[0] for name in PACKAGES}
    base = declared(PROJECT["dependencies"])
    for package in PACKAGES.values():
        if not package.extras:
            assert plain(package.distribution) in base
        for extra in package.extras:
            name = (
                "onnxruntime-gpu" if (package.distribution, extra) == ("onnxruntime", "gpu") else package.distribution
            )
            assert plain(name) in declared(EXTRAS[extra]), (name, extra)


def test_the_lowest_versions_are_the_bounds() -> None:
    lines = [line for line in LOWEST.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    lowest = {plain(name): version for name, _, version in (line.partition("==") for line in lines)}
    assert lowest.keys() == BOUNDS.keys() - UNTESTED
    for name, bound in BOUNDS.items():
        assert bound, f"{name} has no lower bound"
        if name not in UNTESTED | {"torch"}:  # why torch is another one is said there
            assert re.sub(r"(\.0)+$", "", lowest[name]) == bound, name


def closure(name: str, extras: set[str]) -> set[str]:
    """All distributions that one needs here with these extras, by the metadata of those that are installed."""
    reached, queue = set[str](), [(name, extras)]
    seen = set[tuple[str, frozenset[str]]]()
    while queue:
        name, extras = queue.pop()
        if (name, frozenset(extras)) in seen:
            continue
        seen.add((name, frozenset(extras)))
        reached.add(name)
        for line in requires(name) or []:
            requirement = Requirement(line)
            environments = [{"extra": extra} for extra in extras or {""}]
            marker = requirement.marker
            if marker is None or any(marker.evaluate(environment) for environment in environments):
                queue.append((plain(requirement.name), requirement.extras))
    return reached - {"ldmrt", "setuptools"}  # the latter comes with the environment, or is asked for by torch


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="constraints.txt is made with Python 3.11")
def test_all_that_development_installs_is_pinned() -> None:
    try:
        needed = closure("ldmrt", {"dev"})
    except PackageNotFoundError as error:
        pytest.skip(f"not everything of the dev extra is installed: {error}")
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert needed - {plain(line.partition("==")[0]) for line in lines if "==" in line} == set()


SMOKE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import tiny_checkpoint
tiny_checkpoint().save(Path("checkpoint"))
"""


@pytest.mark.slow(minutes=4)
def test_the_lowest_versions_export_verify_and_draw(tmp_path: Path) -> None:
    """In an environment of its own, which has to be downloaded."""
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python, ldmrt = tmp_path / "venv" / "bin" / "python", tmp_path / "venv" / "bin" / "ldmrt"
    # what is imported is compiled then: a tenth of all that is installed
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check", "-c", LOWEST]
    run(*install, "torch")  # by the exact version, before anything asks for another
    run(*install, f"{ROOT}[cpu,openvino,export,plot]", "polygraphy", "pytest")  # the conftest is a pytest's
    listed = dict(line.split("==") for line in run(python, "-m", "pip", "freeze").splitlines() if "==" in line)
    installed = {plain(name): version.partition("+")[0] for name, version in listed.items()}
    for line in LOWEST.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert installed[plain(name)] == version
    run(python, "-c", SMOKE, ROOT / "tests", cwd=tmp_path)
    run(ldmrt, "export", "checkpoint", "bundle", cwd=tmp_path)  # and verify it against the checkpoint
    run(ldmrt, "verify", "bundle", "--html", "report.html", "--junit", "verify.xml", cwd=tmp_path)
    run(ldmrt, "generate", "bundle", "a red apple", "--steps", "4", "-o", "apple.png", cwd=tmp_path)
    run(ldmrt, "samplers", "--plot", "samplers.png", cwd=tmp_path)
    run(ldmrt, "plan", "bundle", cwd=tmp_path)
    assert (tmp_path / "apple.png").stat().st_size > 100
