"""`ldmrt train inpaint`: from a checkpoint to an inpainting one that diffusers loads and that is exported."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.model.training.tasks.masks import MASKS
from ldmrt.runtime.samplers.noise.counter import MASKED, noise
from ldmrt.tools.commands.training.tasks.inpaint import KINDS

from ....support.pipelines import save_pipeline
from ...console.records.cards import check_card
from .repeated import WEIGHTS, assert_repeats, words_of


@pytest.mark.parametrize("family", ["sd15", "sd15-inpainting", "sdxl"])
def test_what_it_writes_draws_the_same_in_diffusers(
    ldmrt: Any, pictures: Path, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers

    source, out = save_pipeline(family, tmp_path / "source"), tmp_path / "out"
    ran = ldmrt(*words_of("inpaint", source, pictures, out))
    assert ran.code == 0, ran.err
    theirs = diffusers.DiffusionPipeline.from_pretrained(out)
    assert type(theirs).__name__ == f"StableDiffusion{'XL' if family == 'sdxl' else ''}InpaintPipeline"
    theirs.set_progress_bar_config(disable=True)

    def drawn(shape: Any, *_: Any, **__: Any) -> torch.Tensor:
        return torch.from_numpy(noise([3], MASKED, tuple(shape)[1:]))

    monkeypatch.setattr("diffusers.models.autoencoders.vae.randn_tensor", drawn)  # of the masked image's latents
    area = np.zeros((16, 16), np.uint8)
    area[3:12, 5:] = 255
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    asked = {"image": image, "mask_image": Image.fromarray(area), "num_inference_steps": 4, "guidance_scale": 5.0}
    asked |= {"height": 16, "width": 16, "strength": 1.0}
    made = load(out)
    ours = torch_pipeline(made)("two pears", **asked, seed=3, latents=start.numpy(), output_type="latent").latents
    expected = theirs("two pears", **asked, latents=start, output_type="latent").images.numpy()
    assert np.abs(ours - expected).max() <= 2e-4 * max(1.0, np.abs(expected).max())  # float32, amplified by guidance
    assert made.unet.conv_in.weight[:, 4:].any()
    assert made.stage.takes_mask
    check_card(out, "inpaint", base="source")
    assert Image.open(out / "training" / "inpaint-000002.png").size == (
        34,
        34,
    )  # two images; above, what was left of them


@pytest.mark.slow(minutes=1)
@pytest.mark.usefixtures("shared_exports")
def test_what_it_writes_is_exported_and_drawn(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    source, out = save_pipeline("sd15", tmp_path / "source"), tmp_path / "out"
    assert ldmrt(*words_of("inpaint", source, pictures, out, "--previews", 0)).code == 0
    assert [path.name for path in (out / "training").glob("*.png")] == ["loss.png"]  # the card's curve, no previews
    exported = ldmrt("export", out, tmp_path / "bundle")
    assert exported.code == 0, exported.err
    area = np.zeros((16, 16), np.uint8)
    area[4:] = 255
    Image.fromarray(area).save(tmp_path / "mask.png")
    words = (
        "generate",
        tmp_path / "bundle",
        "two pears",
        "--image",
        pictures / "0.png",
        "--mask",
        tmp_path / "mask.png",
    )
    drawn = ldmrt(*words, "--width", 16, "--height", 16, "--steps", 2, "-o", tmp_path / "drawn.png")
    assert drawn.code == 0, drawn.err
    assert Image.open(tmp_path / "drawn.png").size == (16, 16)


@pytest.mark.slow(minutes=0.05)
def test_a_resumed_run_writes_the_same_weights(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    source = save_pipeline("sd15", tmp_path / "source")
    words = words_of("inpaint", source, pictures, tmp_path / "out", "--previews", 0)
    whole = assert_repeats(ldmrt, words, tmp_path, ("--masks", "boxes"))
    weights, base = (load_file(folder / WEIGHTS)["conv_in.weight"] for folder in (whole, source))
    assert (weights.shape[1], base.shape[1]) == (9, 4)


def test_bad_input_is_refused_before_any_step(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    source, out = save_pipeline("sd15", tmp_path / "source"), tmp_path / "out"
    lcm = save_pipeline("lcm", tmp_path / "lcm")
    for more, message in (
        (("--masks", "circles"), "circles"),
        (("--size", 15), "expected a multiple of 2"),
        (("--from", lcm), "a distilled model reads its guidance scale"),
        (("--out", source), "--out is the checkpoint that --from names"),
    ):
        ran = ldmrt(*words_of("inpaint", source, pictures, out), *more)
        assert ran.code == 2
        assert message in ran.error
    assert not (out / "training").exists()


def test_kinds_are_those_of_the_library() -> None:
    """The command names them itself, since its help must not load PyTorch."""
    assert list(MASKS) == KINDS
