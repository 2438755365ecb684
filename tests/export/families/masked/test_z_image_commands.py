"""A Z-Image goes the whole way on the command line: exported in half precision, certified, drawn."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime.bundle.bundle import Bundle

from ....support.families.z_image import save_z_image
from ..stable_diffusion_3.test_stable_diffusion_3_commands import ran

pytestmark = pytest.mark.slow(minutes=1)
SIZE = ("--width", 144, "--height", 80)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a Z-Image whose text encoder has its head, measured with the weights of one module in memory."""
    folder = tmp_path_factory.mktemp("half")
    checkpoint = save_z_image("other", folder / "other")
    ran("export", checkpoint, folder / "bundle", "--precision", "fp16", "--low-memory")
    return folder / "bundle"


def test_the_certificate_holds(half: Path) -> None:
    bundle = Bundle.open(half)
    assert bundle.certificate_issues == []
    assert bundle.components == ("text_encoder", "transformer", "vae_decoder", "vae_encoder")
    assert bundle.manifest["prediction_type"] == "flow_prediction"
    assert (bundle.stage.guidance_scale, bundle.stage.space.shift_factor) == (5.0, 0.1159)
    assert "the network is given state, timestep, chat prompt, prompt mask" in ran("inspect", half).output
    assert "transformer" in ran("plan", half, "--sizes", "128x128").output


@pytest.mark.parametrize("how", [("--low-memory",), ("--backend", "openvino")])
def test_draws(how: tuple[str, ...], half: Path, tmp_path: Path) -> None:
    asked = ("generate", half, "two pears", "--steps", 4, "--guidance", 2, "--negative", "blurred", *SIZE)
    ran(*asked, "--out", tmp_path / "a.png", *how)
    ran(*asked, "--out", tmp_path / "b.png")
    drawn, expected = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("a.png", "b.png"))
    assert drawn.shape == (80, 144, 3)
    assert np.abs(drawn - expected).max() <= 4  # levels of 255: half precision rounds elsewhere on another backend
