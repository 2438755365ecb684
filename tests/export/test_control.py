"""ControlNets: the pipeline with one and with two of them against diffusers', then the bundle against PyTorch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ldmrt.export import export_bundle, torch_pipeline
from ldmrt.model import Checkpoint, load
from ldmrt.model.checkpoint import load_controlnet
from ldmrt.runtime import LdmrtError
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.noise import FIRST

from ..families import FAMILIES, randomise, save_pipeline
from .test_tasks import drawing

PROMPTS, SEEDS, STEPS = ["a red apple", "two pears"], [3, 4], 4
SIZE = FAMILIES["sd15"].size
TOLERANCE = 2e-4  # relative to the largest latent: two programs' float32 through four rows, with guidance
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and two ControlNets for it."""
    place = tmp_path_factory.mktemp("control")
    save_pipeline("sd15", place / "checkpoint")
    unet = diffusers.UNet2DConditionModel.from_pretrained(place / "checkpoint" / "unet")
    for seed, name in enumerate(("canny", "depth")):
        made = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))
        randomise(made, seed).save_pretrained(place / name)
    return place


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    controlnets = {f"controlnet_{name}": load_controlnet(folder / name) for name in ("canny", "depth")}
    return replace(load(folder / "checkpoint"), controlnets=controlnets)


def edges(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (SIZE, SIZE, 3), np.uint8))


def close(found: NDArray[Any], expected: NDArray[Any]) -> None:
    assert expected.std() > 0.1
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("scales", [{"canny": 1.0}, {"canny": 0.4}, {"canny": 0.7, "depth": 1.3}])
def test_draws_what_diffusers_draws(
    scales: dict[str, float], folder: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets = [diffusers.ControlNetModel.from_pretrained(folder / name) for name in scales]
    pipeline = diffusers.StableDiffusionControlNetPipeline.from_pretrained(
        folder / "checkpoint", controlnet=nets, safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    drawing(pipeline, SEEDS, [FIRST], monkeypatch)
    expected = pipeline(
        PROMPTS, negative_prompt=["blurred"] * 2, image=[edges(seed) for seed in range(len(nets))],
        controlnet_conditioning_scale=list(scales.values()), num_inference_steps=STEPS, guidance_scale=4.0,
        height=SIZE, width=SIZE, output_type="latent",
    ).images.numpy()  # fmt: skip
    controls = {name: (edges(seed), scale) for seed, (name, scale) in enumerate(scales.items())}
    asked: dict[str, Any] = {"negative_prompt": "blurred", "steps": STEPS, "guidance": 4.0, "seed": SEEDS}
    ours = torch_pipeline(checkpoint)
    close(ours(PROMPTS, controls=controls, **asked).latents, expected)
    plain = ours(PROMPTS, **asked).latents
    assert np.abs(plain - expected).max() > 10 * TOLERANCE * np.abs(expected).max()


def test_bundle_steers_as_its_checkpoint_does(checkpoint: Checkpoint, tmp_path: Path) -> None:
    single = replace(checkpoint, controlnets={"controlnet_canny": checkpoint.controlnets["controlnet_canny"]})
    for _ in export_bundle(single, tmp_path / "bundle"):
        pass
    bundle, reference = open_pipeline(tmp_path / "bundle"), torch_pipeline(single)
    for controls in ({}, {"canny": edges(0)}, {"canny": (edges(0), 0.5)}):
        found, expected = (p(PROMPTS, steps=2, controls=controls).latents for p in (bundle, reference))
        close(found, expected)
    with pytest.raises(LdmrtError, match="no ControlNet 'pose' here; expected canny"):
        bundle(PROMPTS, controls={"pose": edges(0)})
