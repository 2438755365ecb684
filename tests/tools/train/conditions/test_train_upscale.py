"""`ldmrt train upscale`: from a checkpoint to an upscaling one that diffusers loads and that is exported."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.runtime.samplers.noise.counter import NOISED, noise

from ....support.pipelines import save_pipeline
from ...console.records.cards import check_card
from .repeated import assert_repeats, words_of


@pytest.mark.parametrize("family", ["sd15", "upscaler"])
def test_what_it_writes_draws_the_same_in_diffusers(
    ldmrt: Any, pictures: Path, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import StableDiffusionUpscalePipeline

    source, out = save_pipeline(family, tmp_path / "source"), tmp_path / "out"
    ran = ldmrt(*words_of("upscale", source, pictures, out))
    assert ran.code == 0, ran.err
    theirs = StableDiffusionUpscalePipeline.from_pretrained(out)
    theirs.set_progress_bar_config(disable=True)

    def drawn(shape: Any, *_: Any, **__: Any) -> torch.Tensor:
        return torch.from_numpy(noise([3], NOISED, tuple(shape)[1:]))

    module = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_upscale"
    monkeypatch.setattr(f"{module}.randn_tensor", drawn)  # on the small image
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    asked: dict[str, Any] = {"image": image, "noise_level": 30, "num_inference_steps": 4, "guidance_scale": 5.0}
    made = load(out)
    ours = torch_pipeline(made)("two pears", **asked, seed=3, latents=start.numpy(), output_type="latent").latents
    expected = theirs("two pears", **asked, latents=start, output_type="latent").images.numpy()
    assert np.abs(ours - expected).max() <= 2e-4 * max(1.0, np.abs(expected).max())  # float32, amplified by guidance
    assert made.unet.conv_in.weight[:, 4:].any()
    assert made.unet.class_embedding.weight.any()  # type: ignore[union-attr]
    check_card(out, "upscale", base="source")
    assert Image.open(out / "training" / "upscale-000002.png").size == (34, 34)  # two images; above, the small ones


@pytest.mark.slow(minutes=1)
@pytest.mark.usefixtures("shared_exports")
def test_what_it_writes_is_exported_and_enlarges(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    source, out = save_pipeline("sd15", tmp_path / "source"), tmp_path / "out"
    assert ldmrt(*words_of("upscale", source, pictures, out, "--previews", 0)).code == 0
    exported = ldmrt("export", out, tmp_path / "bundle")
    assert exported.code == 0, exported.err
    words = ("upscale", tmp_path / "bundle", pictures / "0.png", "--prompt", "two pears", "--steps", 2)
    drawn = ldmrt(*words, "-o", tmp_path / "drawn.png")
    assert drawn.code == 0, drawn.err
    assert Image.open(tmp_path / "drawn.png").size == (32, 40)  # twice as large: the factor of this autoencoder


@pytest.mark.slow(minutes=0.06)
def test_a_resumed_run_writes_the_same_weights(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    words = words_of("upscale", save_pipeline("sd15", tmp_path / "source"), pictures, tmp_path / "out", "--previews", 0)
    assert_repeats(ldmrt, words, tmp_path, ("--caption-dropout", 0.2))


def test_bad_input_is_refused_before_any_step(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    source, out = save_pipeline("sd15", tmp_path / "source"), tmp_path / "out"
    xl = save_pipeline("sdxl", tmp_path / "xl")
    for more, message in (
        (("--size", 15), "expected a multiple of 2"),
        (("--from", xl), "no pipeline enlarges images with these text encoders"),
        (("--out", source), "--out is the checkpoint that --from names"),
    ):
        ran = ldmrt(*words_of("upscale", source, pictures, out), *more)
        assert ran.code == 2
        assert message in ran.error
    assert not (out / "training").exists()
