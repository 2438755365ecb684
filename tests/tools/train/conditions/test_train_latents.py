"""Latents on the disk by command: the same weights as without, and runs that share them."""

import json
from pathlib import Path
from typing import Any

import pytest

from ldmrt.model.networks.autoencoder import Autoencoder
from ldmrt.model.training.loop.states.files import write_state
from ldmrt.model.training.loop.states.kept import newest_state

from ....support.pipelines import save_pipeline
from ..runs.saved import last_state

UNET = Path("unet") / "diffusion_pytorch_model.safetensors"


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow(minutes=0.18)
@pytest.mark.parametrize("more", [(), ("--flip", "--buckets")])
def test_runs_with_any_cache_have_the_same_bits(
    ldmrt: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    source, shared = save_pipeline("sd15", tmp_path / "source"), tmp_path / "shared"
    words = ("train", "finetune", "--from", source, "--data", pictures, "--size", 16, "--batch", 2, "--steps", 4)
    words += ("--warmup", 0, "--previews", 0, "--log-every", 1, "--save-every", 2, "--validation", 0.4, *more)
    ways = {
        "memory": (), "none": ("--cache", "none"), "disk": ("--cache", "disk"),
        "first": ("--cache", "disk", "--cache-folder", shared),
    }  # fmt: skip
    for name, way in ways.items():
        ran = ldmrt(*words, *way, "--out", tmp_path / name)
        assert ran.code == 0, ran.err
    assert len(list((tmp_path / "disk" / "latents").glob("*-cpu-fp32-*.safetensors"))) == 1
    assert not (tmp_path / "first" / "latents").exists()

    def encoded(*_: Any) -> Any:
        raise AssertionError("an image was encoded")

    monkeypatch.setattr(Autoencoder, "encode", encoded)
    monkeypatch.setattr("ldmrt.model.training.data.captioned.fitted", encoded)
    ran = ldmrt(*words, "--cache", "disk", "--cache-folder", shared, "--out", tmp_path / "second")
    assert ran.code == 0, ran.err
    for name in ("none", "disk", "first", "second"):
        assert losses(tmp_path / name) == losses(tmp_path / "memory")
        assert (tmp_path / name / UNET).read_bytes() == (tmp_path / "memory" / UNET).read_bytes()


@pytest.mark.slow(minutes=0.05)
def test_rounded_latents_are_part_of_the_run(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    source, out = save_pipeline("sd15", tmp_path / "source"), tmp_path / "out"
    words = ("train", "finetune", "--from", source, "--data", pictures, "--size", 16, "--batch", 2, "--previews", 0)
    words += ("--schedule", "constant", "--out", out)
    assert ldmrt(*words, "--steps", 1, "--latents", "fp16").code == 0
    assert last_state(out)["about"]["latents"] == "fp16"
    refused = ldmrt(*words, "--steps", 2, "--resume", "--latents", "fp32")
    assert refused.code == 2
    assert "another --latents; expected fp16; found fp32" in refused.error
    resumed = ldmrt(*words, "--steps", 2, "--resume", "--latents", "fp16", "--cache", "disk")
    assert resumed.code == 0, resumed.err
    state = last_state(out)
    del state["about"]["latents"]  # of an older version, whose latents were not rounded
    write_state(newest_state(out)[0], state)
    assert "expected fp32; found fp16" in ldmrt(*words, "--steps", 3, "--resume", "--latents", "fp16").error
    assert ldmrt(*words, "--steps", 3, "--resume").code == 0


@pytest.mark.slow(minutes=0.05)
def test_rounded_latents_are_of_any_precision(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    """autocast to bf16 refuses to stack fp16 on the CPU."""
    source = save_pipeline("sd15", tmp_path / "source")
    words = ("train", "finetune", "--from", source, "--data", pictures, "--size", 16, "--batch", 2, "--previews", 0)
    ran = ldmrt(*words, "--steps", 1, "--latents", "fp16", "--precision", "bf16", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err


def test_what_cannot_be_kept_on_the_disk_is_refused(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    source, out = save_pipeline("sd15", tmp_path / "source"), tmp_path / "out"
    words = ("train", "finetune", "--from", source, "--data", pictures, "--size", 16, "--out", out)
    assert "--cache-folder needs --cache disk" in ldmrt(*words, "--cache-folder", tmp_path / "latents").error
    assert not out.exists()
