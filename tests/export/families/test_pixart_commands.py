"""A PixArt goes the whole way on the command line: exported in half precision, certified, drawn."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime.bundle.bundle import Bundle

from ...support.families.pixart import save_pixart
from .test_stable_diffusion_3_commands import ran

pytestmark = pytest.mark.slow(minutes=1)
SIZE = ("--width", 56, "--height", 40)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a PixArt-Alpha, whose network is told the size of its image."""
    folder = tmp_path_factory.mktemp("half")
    ran("export", save_pixart("alpha", folder / "alpha"), folder / "bundle", "--precision", "fp16")
    return folder / "bundle"


def test_the_certificate_holds(half: Path) -> None:
    bundle = Bundle.open(half)
    assert bundle.certificate_issues == []
    assert bundle.components == ("text_encoder", "transformer", "vae_decoder", "vae_encoder")
    assert bundle.manifest["prediction_type"] == "epsilon"
    ran("verify", half)
    assert "the network is given state, timestep, masked prompt, prompt mask" in ran("inspect", half).output
    assert "transformer" in ran("plan", half, "--sizes", "64x64").output


@pytest.mark.parametrize("how", [("--low-memory",), ("--backend", "openvino")])
def test_draws(how: tuple[str, ...], half: Path, tmp_path: Path) -> None:
    asked = ("generate", half, "two pears", "--steps", 4, "--guidance", 4.5, "--negative", "blurred", *SIZE)
    ran(*asked, "--out", tmp_path / "a.png", *how)
    ran(*asked, "--out", tmp_path / "b.png")
    drawn, expected = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("a.png", "b.png"))
    assert drawn.shape == (40, 56, 3)
    assert np.abs(drawn - expected).max() <= 4  # levels of 255: half precision rounds elsewhere on another backend
