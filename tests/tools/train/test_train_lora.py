"""`ldmrt train lora`: from a checkpoint to a file that diffusers and `export --lora` read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.model.lora.merge import merge, read_lora
from ldmrt.model.training.lora.pairs import GROUPS
from ldmrt.model.training.lora.writing import FORMATS
from ldmrt.tools.commands.training.tasks.lora import FILE, lora

from ...support.pipelines import save_pipeline
from ..console.records.cards import check_card


def words_of(source: Path, pictures: Path, out: Path, *more: object) -> tuple[object, ...]:
    words = (
        "train",
        "lora",
        "--from",
        source,
        "--data",
        pictures,
        "--size",
        16,
        "--batch",
        2,
        "--steps",
        2,
        "--rank",
        2,
    )
    return (*words, "--warmup", 0, "--learning-rate", 1e-1, "--previews", 1, "--out", out, *more)


@pytest.mark.slow(minutes=0.1)
@pytest.mark.parametrize(("family", "form"), [("sd15", "diffusers"), ("sd15", "kohya"), ("sdxl", "diffusers")])
def test_its_file_draws_the_same_in_diffusers(
    ldmrt: Any, pictures: Path, tmp_path: Path, family: str, form: str
) -> None:
    import diffusers

    source, out = save_pipeline(family, tmp_path / "source"), tmp_path / "out"
    words = words_of(
        source, pictures, out, "--train-text-encoder", "--alpha", 4, "--layers", "attention", "--format", form
    )
    ran = ldmrt(*words, "--layers", "feed-forward")
    assert ran.code == 0, ran.err
    theirs = diffusers.DiffusionPipeline.from_pretrained(source)
    theirs.set_progress_bar_config(disable=True)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    asked = {"num_inference_steps": 4, "guidance_scale": 5.0, "height": 16, "width": 16}

    def drawn() -> np.ndarray:
        return theirs("two pears", **asked, latents=start, output_type="latent").images.numpy()

    base = drawn()
    theirs.load_lora_weights(out)
    expected, loaded = drawn(), load(source)
    merge(loaded.networks, [(read_lora(out / FILE), 1.0)])
    ours = torch_pipeline(loaded)("two pears", **asked, latents=start.numpy(), output_type="latent").latents
    assert np.abs(expected - base).max() > 1e-2
    assert np.abs(ours - expected).max() <= 2e-4 * max(1.0, np.abs(expected).max())  # float32, amplified by guidance
    assert Image.open(out / "training" / "lora-000002.png").size == (16, 16)
    assert check_card(out, "lora", base="source")["base_model_relation"] == "adapter"


@pytest.mark.slow(minutes=0.16)
@pytest.mark.parametrize("more", [(), ("--precision", "bf16", "--base-precision", "bf16", "--train-text-encoder")])
def test_a_resumed_run_writes_the_same_file(ldmrt: Any, more: tuple[Any, ...], pictures: Path, tmp_path: Path) -> None:
    source = save_pipeline("sd15", tmp_path / "source")
    words = words_of(
        source, pictures, tmp_path / "whole", "--steps", 4, "--schedule", "constant", "--checkpointing", *more
    )
    assert ldmrt(*words).code == 0
    parts = (*words, "--out", tmp_path / "parts")
    assert ldmrt(*parts, "--steps", 2).code == 0
    for other in (("--rank", 3), ("--base-precision", "fp32")) if "bf16" in more else (("--rank", 3),):
        refused = ldmrt(*parts, "--resume", *other)
        assert (refused.code, f"another {other[0].removeprefix('--')}" in refused.error) == (2, True)
    assert ldmrt(*parts, "--resume").code == 0
    whole, again = load_file(tmp_path / "whole" / FILE), load_file(tmp_path / "parts" / FILE)
    assert whole.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    assert any(value.any() for name, value in whole.items() if "lora_B" in name)
    repeated = ldmrt("train", tmp_path / "whole" / "recipe.toml", "--set", "previews=0", "--out", tmp_path / "recipe")
    assert repeated.code == 0, repeated.err
    assert (tmp_path / "recipe" / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()


def test_invalid_loras_are_refused_before_any_step(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    source, out = save_pipeline("sd15", tmp_path / "source"), tmp_path / "out"
    words = words_of(source, pictures, out)
    for more, message in (
        (("--rank", 10_000), "the rank of the LoRA is too large for unet."),
        (("--layers", "convolutions", "--train-text-encoder"), "no layer of text_encoder is in these groups"),
        (("--alpha", "nan"), "not a number"),
        (("--layers", "everything"), "everything"),
        (("--out", source), "--out is the checkpoint that --from names"),
    ):
        ran = ldmrt(*words, *more)
        assert ran.code == 2
        assert message in ran.error
    assert not (out / FILE).exists()
    assert not (out / "training").exists()


@pytest.mark.parametrize(("base", "precision"), [("bf16", "fp32"), ("fp16", "fp32"), ("fp16", "bf16")])
def test_a_rounded_base_is_for_its_precision(
    ldmrt: Any, pictures: Path, tmp_path: Path, base: str, precision: str
) -> None:
    ran = ldmrt(
        *words_of(tmp_path, pictures, tmp_path / "out", "--base-precision", base, "--precision", precision)
    )  # fmt: skip
    assert (ran.code, f"--base-precision {base} needs --precision {base}; found {precision}" in ran.error) == (2, True)
    assert not (tmp_path / "out").exists()


def test_choices_are_those_of_the_library() -> None:
    """The command names them itself, since its help must not load PyTorch."""
    choices = {option.name: getattr(option.type, "choices", None) for option in lora.params}
    assert list(choices["layers"]) == list(GROUPS)
    assert tuple(choices["form"]) == FORMATS


def test_compiling_is_refused(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    """Compiled U-Nets gave another loss with pairs in their layers: 1.6276 in place of 1.6161."""
    ran = ldmrt(*words_of(tmp_path, pictures, tmp_path / "out", "--compile"))
    assert (ran.code, "a LoRA cannot be trained with compiled networks" in ran.error) == (2, True)
    assert not (tmp_path / "out").exists()
