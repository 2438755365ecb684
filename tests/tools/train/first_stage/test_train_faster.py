"""`--optimizer adamw8bit` and `--compile`: options that need something beside the project."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

WEIGHTS = Path("vae") / "diffusion_pytorch_model.safetensors"


def words(pictures: Path, out: Path, steps: int, *more: object) -> list[object]:
    own = ["--data", pictures, "--batch", 2, "--size", 16, "--warmup", 0, "--schedule", "constant"]
    return ["train", "autoencoder", *own, "--steps", steps, "--out", out, *more]


@pytest.mark.slow(minutes=0.09)
def test_a_run_in_8_bits_that_was_stopped_ends_in_the_same_bytes(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    """With an opponent, whose optimizer is of that kind too."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra bitsandbytes)")
    more = ["--optimizer", "adamw8bit", "--adversarial", 0.5, "--discriminator-layers", 1]
    whole, halves, usual = (tmp_path / name for name in ("whole", "halves", "usual"))
    runs = ((whole, 3, more), (halves, 2, more), (halves, 3, [*more, "--resume"]), (usual, 3, more[2:]))
    for out, steps, own in runs:
        ran = ldmrt(*words(pictures, out, steps, *own))
        assert ran.code == 0, ran.err
    assert (whole / WEIGHTS).read_bytes() == (halves / WEIGHTS).read_bytes() != (usual / WEIGHTS).read_bytes()
    assert load_file(whole / WEIGHTS).keys() == load_file(usual / WEIGHTS).keys()
    changed = ldmrt(*words(pictures, halves, 4, *more[2:], "--resume"))
    assert "another optimizer; expected adamw8bit; found adamw" in changed.error


def test_8_bits_need_their_package(ldmrt: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    ran = ldmrt(*words(pictures, tmp_path / "out", 1, "--optimizer", "adamw8bit"))
    assert ran.code == 2
    assert "bitsandbytes is not installed" in ran.error
    assert "pip install 'ldmrt[bitsandbytes]'" in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow(minutes=0.06)
def test_a_missing_compiler_stops_before_anything_is_written(
    ldmrt: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_networks: None
) -> None:
    """A plan, which compiles nothing, needs none."""

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", fails)
    asked = words(pictures, tmp_path / "out", 1, "--compile")
    ran = ldmrt(*asked)
    assert ran.code == 2
    assert "torch.compile does not work here; found no compiler" in ran.error
    assert not (tmp_path / "out").exists()
    assert ldmrt(*asked, "--plan").code == 0
