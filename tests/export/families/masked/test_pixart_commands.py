"""A PixArt goes the whole way on the command line: exported in half precision, certified, drawn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldmrt.export.components.table import components, example
from ldmrt.export.graph.to_onnx import to_onnx
from ldmrt.export.parity.origin import other_graph
from ldmrt.export.precision.policy import choose_precisions
from ldmrt.model import load
from ldmrt.runtime.bundle.bundle import Bundle

from ....support.families.pixart import save_pixart
from ..stable_diffusion_3.test_stable_diffusion_3_commands import ran

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


def test_t5_computes_in_float32_where_halves_overflow(pixart_checkpoint: Path, tmp_path: Path) -> None:
    """As T5-XXL does: its encoder is an island, and the graph is still of its checkpoint."""
    whole = load(pixart_checkpoint)
    with torch.no_grad():
        whole.text_encoders["text_encoder"].get_parameter("encoder.block.0.layer.1.DenseReluDense.wo.weight").mul_(3e4)
    whole.save(tmp_path / "large")
    loaded, _, islands = choose_precisions(lambda kinds: (load(tmp_path / "large", dtype=kinds), {}), {"": "fp16"})
    (why,) = islands.pop("text_encoder").values()
    assert not islands
    assert "wo reaches" in why
    part = components(loaded)["text_encoder"]
    assert list(other_graph(part, to_onnx(part, tmp_path))) == []
    given = example(part, {"batch": 2})
    wide, narrow = (components(one)["text_encoder"].engine()(**given) for one in (whole, loaded))
    wanted, found = wide["last_hidden_state"], narrow["last_hidden_state"].astype(np.float32)
    # Of the largest value: what a half holds of the result, as the network computes in float32.
    assert np.abs(found - wanted).max() <= 2**-10 * np.abs(wanted).max()
