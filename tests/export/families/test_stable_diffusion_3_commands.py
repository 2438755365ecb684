"""A Stable Diffusion 3 goes the whole way on the command line: exported in half precision, certified, drawn."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.tools.cli import cli

from ...support.families.compared import close
from .test_stable_diffusion_3 import PROMPTS, SEEDS, expected

pytestmark = pytest.mark.slow(minutes=1)


def ran(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def half(sd3_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half") / "bundle"
    ran("export", sd3_checkpoint, folder, "--precision", "fp16")
    return folder


def test_the_certificate_holds(half: Path, sd3_checkpoint: Path) -> None:
    bundle = Bundle.open(half)
    assert bundle.certificate_issues == []
    assert bundle.components == (
        "text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae_decoder", "vae_encoder",
    )  # fmt: skip
    assert bundle.manifest["prediction_type"] == "flow_prediction"
    ran("verify", half)
    ran("verify", half, "--against", sd3_checkpoint)


@pytest.mark.parametrize("how", [("--low-memory",), ("--backend", "openvino")])
def test_draws(how: tuple[str, ...], half: Path, tmp_path: Path) -> None:
    ran("generate", half, "two pears", "--steps", 4, "--prompt-2", "pears", "--out", tmp_path / "a.png", *how)
    ran("generate", half, "two pears", "--steps", 4, "--prompt-2", "pears", "--out", tmp_path / "b.png")
    drawn, expected = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("a.png", "b.png"))
    assert drawn.shape == (16, 16, 3)
    assert np.abs(drawn - expected).max() <= 4  # levels of 255: half precision rounds elsewhere on another backend


def test_an_embedding_is_refused(sd3_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "pear.safetensors"
    save_file({"clip_l": torch.ones(1, 24), "clip_g": torch.ones(1, 20)}, file)
    result = CliRunner().invoke(cli, ["export", str(sd3_checkpoint), str(tmp_path / "b"), "--embedding", str(file)])
    assert "this needs a model with a U-Net" in str(result.exception)
    assert not (tmp_path / "b").exists()


def test_sizes_that_it_cannot_draw_are_not_built(half: Path) -> None:
    for size, problem in (("18x18", "multiples of 4"), ("100x100", "sides of at most 96")):
        result = CliRunner().invoke(cli, ["plan", str(half), "--sizes", size])
        assert problem in str(result.exception)


def test_is_described_and_planned(half: Path) -> None:
    assert "the network is given state, timestep, joint prompt, joint pooled prompt" in ran("inspect", half).output
    assert "transformer" in ran("plan", half, "--sizes", "16x16").output


@pytest.fixture(scope="module")
def skipping(sd3_checkpoint: Path, sd3_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that had no such row before; all but its transformer is kept."""
    folder = tmp_path_factory.mktemp("skipping") / "bundle"
    shutil.copytree(sd3_bundle, folder)
    ran("export", sd3_checkpoint, folder, "--skip-layers", "0,2")
    return folder


def test_a_network_that_skips_layers_is_certified(skipping: Path, sd3_checkpoint: Path) -> None:
    """The recorded image has steps with a row that skips them; the checkpoint is loaded with the bundle's layers."""
    bundle = Bundle.open(skipping)
    assert bundle.certificate_issues == []
    assert bundle.stage.skipped_layers == (0, 2)
    ran("verify", skipping)
    assert "transformer" in ran("verify", skipping, "--against", sd3_checkpoint, "--bisect", "transformer").output
    result = CliRunner().invoke(cli, ["verify", str(skipping), "--against", str(sd3_checkpoint), "--skip-layers", "0"])
    assert "this network skips other layers; expected 0,2; found 0" in str(result.exception)
    assert "transformer" in ran("plan", skipping, "--sizes", "16x16").output
    assert "skip_layer_guidance_scale and guidance_scale (7 by default)" in ran("inspect", skipping).output


def test_draws_with_skipped_layers_as_diffusers(skipping: Path, sd3_checkpoint: Path) -> None:
    asked = {"skip_guidance_layers": [0, 2], "skip_layer_guidance_stop": 0.7, "num_inference_steps": 5}
    with open_pipeline(skipping) as pipeline:
        ours = pipeline(PROMPTS, seed=SEEDS, height=20, width=36, guidance_scale=4.0, **asked)
    close(ours.latents, expected(sd3_checkpoint, 20, 36, guidance_scale=4.0, **asked))


def test_skips_layers_on_the_command_line(skipping: Path, half: Path, tmp_path: Path) -> None:
    asked = ("two pears", "--steps", 8, "--skip-guidance-layers", "0,2", "--skip-layer-guidance-scale", 3)
    ran("generate", skipping, *asked, "--out", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image, open_pipeline(skipping) as pipeline:
        told = json.loads(image.info["ldmrt"])
        again = pipeline("two pears", num_inference_steps=8, skip_guidance_layers=told["skip_guidance_layers"],
                         skip_layer_guidance_scale=told["skip_layer_guidance_scale"])  # fmt: skip
        assert (np.asarray(image) == again.pixels[0]).all()
    result = CliRunner().invoke(cli, ["generate", str(half), *map(str, asked), "--out", str(tmp_path / "b.png")])
    assert "ldmrt export CHECKPOINT BUNDLE --skip-layers 0,2" in str(result.exception)
    assert not (tmp_path / "b.png").exists()
