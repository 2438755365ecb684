"""Tiny autoencoders in the place of Stable Diffusion 3's and FLUX.1's own draw what diffusers' pipelines draw.

taesd3 and taef1 have 16 channels and leave scale and shift at AutoencoderTiny's 1 and 0; here are others too.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ldmrt.export.components.table import components
from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.export.graph.to_onnx import to_onnx
from ldmrt.model import load, with_preview_decoder
from ldmrt.runtime import LdmrtError, Pipeline, Request
from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.backends.ort.engine import OrtEngine
from ldmrt.runtime.parity.metrics import psnr
from ldmrt.runtime.samplers.noise.counter import FIRST

from ...support.families.compared import close
from ...support.pipelines import randomise
from ..test_tasks import drawing, picture

PROMPTS, SEEDS, HEIGHT, WIDTH = ["a red apple, noto style", "two pears"], [3, 4], 64, 96
# Of each family: the levels of its own autoencoder, the pipelines, and what is asked of them.
FAMILIES: dict[str, tuple[int, str, str, dict[str, Any]]] = {
    "sd3": (2, "StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", {"guidance_scale": 4.0}),
    "flux": (4, "FluxPipeline", "FluxImg2ImgPipeline", {"guidance_scale": 3.5}),
}
SCALED = {"scaling_factor": 1.25, "shift_factor": 0.2}
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:request. .*is far from the model's own size"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # of diffusers
]


def save_tiny(folder: Path, levels: int, **config: Any) -> Path:
    """Write an AutoencoderTiny with random weights, small, and return its folder."""
    torch.manual_seed(5)
    sizes = {
        "encoder_block_out_channels": [8] * levels,
        "decoder_block_out_channels": [12] * levels,
        "num_encoder_blocks": [1] * levels,
        "num_decoder_blocks": [1] * levels,
    }
    randomise(diffusers.AutoencoderTiny(**{**sizes, "latent_channels": 16, **config})).save_pretrained(folder)
    return folder


def in_onnx(place: Path, tiny: Path, folder: Path) -> Pipeline:
    """Return a pipeline of a checkpoint with a tiny autoencoder, whose both halves are ONNX graphs."""
    loaded = load(place, parts={"vae": tiny})
    parts = components(loaded)
    engines: dict[str, Any] = {name: part.engine for name, part in parts.items()}
    for name in ("vae_decoder", "vae_encoder"):
        engines[name] = partial(OrtEngine, name, to_onnx(parts[name], folder / name))
    return replace(torch_pipeline(loaded), engines=LazyEngines(engines))


@pytest.mark.parametrize(
    "config", [{}, pytest.param(SCALED, marks=pytest.mark.slow)], ids=["as published", "scaled and shifted, in ONNX"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_draws_what_diffusers_draws(
    family: str, config: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels, *kinds, asked = FAMILIES[family]
    place: Path = request.getfixturevalue(f"{family}_checkpoint")
    tiny = save_tiny(tmp_path / "tiny", levels, **config)
    ours = in_onnx(place, tiny, tmp_path) if config else torch_pipeline(load(place, parts={"vae": tiny}))
    image = picture().resize((WIDTH, HEIGHT))
    vae = diffusers.AutoencoderTiny.from_pretrained(tiny)
    whole = getattr(diffusers, kinds[0]).from_pretrained(place, vae=vae)
    for kind, told in zip(kinds, ({}, {"image": image, "strength": 0.7}), strict=True):
        theirs = getattr(diffusers, kind)(**whole.components)
        assert theirs.vae is vae
        theirs.set_progress_bar_config(disable=True)
        steps = {"num_inference_steps": 4, "height": HEIGHT, "width": WIDTH}
        given = {**asked, **steps, **told}

        def drawn(
            output_type: str, theirs: Any = theirs, given: dict[str, Any] = given, family: str = family
        ) -> NDArray[np.float32]:
            drawing(theirs, SEEDS, [FIRST], monkeypatch)  # of the image no noise is drawn: no Gaussian
            each = {**given, "image": [image] * 2} if "image" in given else given
            found = theirs(PROMPTS, output_type=output_type, **each).images
            if output_type == "latent" and family == "flux":
                found = diffusers.FluxPipeline._unpack_latents(found, HEIGHT, WIDTH, 8)
            return found.numpy() if output_type == "latent" else found

        found = ours(PROMPTS, seed=SEEDS, output_type="np", **given)
        close(found.latents, drawn("latent"))
        expected = drawn("np")
        assert np.ptp(expected) > 0.1
        assert psnr(*((array * 255).round().astype(np.uint8) for array in (found.array, expected))) > 60


def test_pixart_draws_what_diffusers_draws(
    pixart_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = save_tiny(tmp_path, 3, latent_channels=4)
    vae = diffusers.AutoencoderTiny.from_pretrained(tiny)
    theirs = diffusers.PixArtSigmaPipeline.from_pretrained(pixart_checkpoint, vae=vae)
    theirs.set_progress_bar_config(disable=True)
    drawing(theirs, SEEDS, [FIRST], monkeypatch)
    asked = {"num_inference_steps": 4, "height": HEIGHT, "width": WIDTH, "output_type": "np"}
    found = torch_pipeline(load(pixart_checkpoint, parts={"vae": tiny}))(PROMPTS, seed=SEEDS, **asked).array
    expected = theirs(PROMPTS, use_resolution_binning=False, **asked).images
    assert np.ptp(expected) > 0.1
    assert psnr(*((array * 255).round().astype(np.uint8) for array in (found, expected))) > 60


@pytest.mark.parametrize("family", FAMILIES)
def test_previews_are_decoded_by_one(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Beside the model's own autoencoder, whose scale and shift are others."""
    place: Path = request.getfixturevalue(f"{family}_checkpoint")
    tiny = save_tiny(tmp_path, FAMILIES[family][0], **SCALED)
    ours = torch_pipeline(with_preview_decoder(load(place), tiny))
    own = ours.stage.space
    assert (own.scaling_factor, own.shift_factor) != (SCALED["scaling_factor"], SCALED["shift_factor"])
    asked = Request("two pears", num_inference_steps=2, height=HEIGHT, width=WIDTH)
    predicted = next(np.array(state.x0) for state in ours.steps(asked))
    vae = diffusers.AutoencoderTiny.from_pretrained(tiny).eval()
    with torch.no_grad():
        theirs = vae.decode(torch.from_numpy(predicted) / vae.config.scaling_factor + vae.config.shift_factor).sample
    levels = ((theirs / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.ptp(levels) > 25
    assert psnr(ours.preview(predicted), levels) > 60
    with pytest.raises(LdmrtError, match="vae_decoder_preview: the preview decoder has another latent_channels"):
        with_preview_decoder(load(place), save_tiny(tmp_path / "4", FAMILIES[family][0], latent_channels=4))


@pytest.mark.parametrize("family", FAMILIES)
def test_of_other_channels_is_refused(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    place: Path = request.getfixturevalue(f"{family}_checkpoint")
    tiny = save_tiny(tmp_path, FAMILIES[family][0], latent_channels=4)
    with pytest.raises(LdmrtError, match=r"vae: latent_channels of the tiny autoencoder .*; expected 16; found 4"):
        load(place, parts={"vae": tiny})


@pytest.mark.parametrize(
    ("folder", "levels", "beside"), [("checkpoint", 2, "a U-Net"), ("pixart_checkpoint", 3, "PixArt")]
)
def test_a_shift_that_diffusers_does_not_read_is_refused(
    folder: str, levels: int, beside: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tiny = save_tiny(tmp_path, levels, latent_channels=4, shift_factor=0.25)
    problem = f"vae: unsupported shift_factor of a tiny autoencoder beside {beside}; .*0.25"
    with pytest.raises(LdmrtError, match=problem):
        load(request.getfixturevalue(folder), parts={"vae": tiny})
