"""`ldmrt engines list` is quick, and commands that change a bundle do so one at a time."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ldmrt.runtime import Bundle
from ldmrt.runtime.bundle.engines.engine_key import Range, Recipe
from ldmrt.runtime.bundle.engines.store import FOLDER, SIDECAR, model_digests, write_engine
from ldmrt.runtime.files import file_cache
from ldmrt.runtime.files.lock import bundle_lock
from ldmrt.runtime.host import megabytes
from ldmrt.tools.commands import engines

# What takes a second to import, or more, and what listing has no need of.
PROGRAM = """
import sys
from ldmrt.tools.cli import main
sys.argv = ["ldmrt", "engines", "list", sys.argv[1]]
try:
    main()
finally:
    print(sorted({"torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "transformers"} & set(sys.modules)))
"""


@pytest.fixture
def built(bundle: Path, tmp_path: Path) -> Path:
    """A bundle with five engines of straw."""
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    opened = Bundle.open(copy)
    for side in range(8, 13):
        shape = (2, 4, side, side)
        buckets = ({"sample": Range(shape, shape, shape)},)
        digests = model_digests(opened, "unet")
        write_engine(
            copy / FOLDER, Recipe("unet", *digests, "fp32", "tensorrt-rtx", "1.7.1", "sm89", buckets), b"a plan", {}
        )
    return copy


def test_listing_imports_nothing_large(built: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM, str(built)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("unet-sm89-") == 5
    assert ran.stdout.endswith("[]\n")


def test_listing_again_reads_no_plan(ldmrt: Any, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, hashed = list[str](), file_cache.sha256
    monkeypatch.setattr(file_cache, "SETTLED", -1e18)  # nobody waits two seconds here
    monkeypatch.setattr(engines, "versions", dict)  # of none is known that another is installed
    monkeypatch.setattr(file_cache, "sha256", lambda path: (read.append(path.name), hashed(path))[1])
    for times in (5, 0):
        read.clear()
        assert ldmrt("engines", "list", built).code == 0
        assert len(read) == times


@pytest.mark.parametrize("content", ["{", "[" * 100000, '{"schema": 1}', '{"schema": "\\u001b[31m"}'])
def test_a_bad_sidecar_is_one_refused_engine(ldmrt: Any, built: Path, content: str) -> None:
    first, *_ = sorted((built / FOLDER).iterdir())
    (first / SIDECAR).write_text(content)
    ran = ldmrt("engines", "list", built)
    assert ran.code == 0, ran.err
    assert "\x1b" not in ran.out
    assert ran.out.count("unet-sm89-") == 5
    assert ran.out.count("fits") == 4 or ran.out.count("is installed") == 4
    assert ldmrt("inspect", built).code == 0
    assert f"removed {first.name}" in ldmrt("engines", "prune", built).out
    assert not first.exists()


def test_folders_of_odd_names_are_shown_and_removed(ldmrt: Any, built: Path) -> None:
    for name in ("\x1b[31mred", "two\nlines", "[bold]loud"):
        (built / FOLDER / name).mkdir()
    ran = ldmrt("engines", "list", built)
    assert ran.code == 0, ran.err
    assert "\x1b" not in ran.out
    assert "[bold]loud" in ran.out
    assert ldmrt("engines", "prune", built).code == 0
    assert all(folder.name.startswith("unet-") for folder in (built / FOLDER).iterdir())


def test_one_command_at_a_time(ldmrt: Any, built: Path, checkpoint: Path) -> None:
    with bundle_lock(built):
        for words in (("engines", "prune", built), ("export", checkpoint, built)):
            assert "is being changed by process" in ldmrt(*words).error


def test_what_is_measured_may_be_absent(built: Path, ldmrt: Any) -> None:
    for folder in (built / FOLDER).iterdir():
        stored = json.loads((folder / SIDECAR).read_text()) | {"measured": {"scratch": None}}
        (folder / SIDECAR).write_text(json.dumps(stored))
    assert megabytes(0) in ldmrt("engines", "list", built).out
