"""The wheel holds the four packages and works outside the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_wheel_and_sdist(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert len(list(tmp_path.glob("*.tar.gz"))) == 1
    names = zipfile.ZipFile(wheel).namelist()
    for package in ("model", "export", "runtime", "tools"):
        assert f"ldmrt/{package}/py.typed" in names
    parts = {part for name in names for part in Path(name).parts}
    assert not [part for part in parts if part.startswith(("pretrained", "test"))]

    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); import ldmrt.tools.cli as c; print(c.__file__); c.main()"
    run = [sys.executable, "-c", code, str(target), "--version"]
    shown = subprocess.run(run, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert str(target) in shown
    assert "ldmrt 0.1.0" in shown
