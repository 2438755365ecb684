"""A FLUX.1 goes the whole way on the command line: exported in half precision, certified, drawn."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.tools.cli import cli

from ..stable_diffusion_3.test_stable_diffusion_3_commands import ran

pytestmark = pytest.mark.slow(minutes=2)
SIZE = ("--width", 64, "--height", 96)


@pytest.fixture(scope="module")
def half(flux_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half") / "bundle"
    ran("export", flux_checkpoint, folder, "--precision", "fp16")
    return folder


def test_the_certificate_holds(half: Path) -> None:
    bundle = Bundle.open(half)
    assert bundle.certificate_issues == []
    assert bundle.components == ("text_encoder", "text_encoder_2", "transformer", "vae_decoder", "vae_encoder")
    ran("verify", half)
    told = "the network is given state, timestep, t5 prompt, clip pooled prompt, guidance; guided by its own input"
    assert f"{told} (3.5 by default) and true_cfg_scale" in ran("inspect", half).output
    assert "transformer" in ran("plan", half, "--sizes", "64x64").output


@pytest.mark.parametrize("how", [("--low-memory",), ("--backend", "openvino")])
def test_draws(how: tuple[str, ...], half: Path, tmp_path: Path) -> None:
    asked = ("generate", half, "two pears", "--steps", 4, "--prompt-2", "pears", *SIZE)
    ran(*asked, "--out", tmp_path / "a.png", *how)
    ran(*asked, "--out", tmp_path / "b.png")
    drawn, expected = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("a.png", "b.png"))
    assert drawn.shape == (96, 64, 3)
    with Image.open(tmp_path / "a.png") as image:
        assert json.loads(image.info["ldmrt"])["guidance"] == 3.5
    assert np.abs(drawn - expected).max() <= 4  # levels of 255: half precision rounds elsewhere on another backend


def test_bisect_names_the_module(half: Path, flux_checkpoint: Path, tmp_path: Path) -> None:
    """A weight of the checkpoint differs from the one that was exported."""
    other, weight = tmp_path / "checkpoint", "single_transformer_blocks.0.attn.to_k.bias"
    shutil.copytree(flux_checkpoint, other)
    file = other / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state[weight] += 0.5
    save_file(state, file)
    result = CliRunner().invoke(cli, ["verify", str(half), "--against", str(other), "--bisect", "transformer"])
    assert result.exit_code == 1, result.output
    assert f"transformer: {weight} differs from the checkpoint's" in result.output
    first = result.output[result.output.index("the first past") :].splitlines()[2]
    assert weight.removesuffix(".bias") in first
