"""A Sana goes the whole way on the command line: exported in half precision, certified, drawn."""

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
from ldmrt.runtime.parity.tolerances import COMPONENT

from ....support.families.sana import save_sana
from ..stable_diffusion_3.test_stable_diffusion_3_commands import ran

pytestmark = pytest.mark.slow(minutes=1)
SIZE = ("--width", 36, "--height", 20)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a Sana as the larger ones are, measured with the weights of one module in memory."""
    folder = tmp_path_factory.mktemp("half")
    checkpoint = save_sana("larger", folder / "larger")
    ran("export", checkpoint, folder / "bundle", "--precision", "fp16", "--low-memory")
    return folder / "bundle"


def test_the_certificate_holds(half: Path) -> None:
    bundle = Bundle.open(half)
    assert bundle.certificate_issues == []
    assert bundle.components == ("text_encoder", "transformer", "vae_decoder", "vae_encoder")
    assert bundle.manifest["prediction_type"] == "flow_prediction"
    assert (bundle.stage.guidance_scale, bundle.stage.space.codec) == (4.5, "deep")
    assert "the network is given state, timestep, instructed prompt, prompt mask" in ran("inspect", half).output
    assert "transformer" in ran("plan", half, "--sizes", "64x64").output


@pytest.mark.parametrize("how", [("--low-memory",), ("--backend", "openvino")])
def test_draws(how: tuple[str, ...], half: Path, tmp_path: Path) -> None:
    asked = ("generate", half, "two pears", "--steps", 4, "--negative", "blurred", *SIZE)
    ran(*asked, "--out", tmp_path / "a.png", *how)
    ran(*asked, "--out", tmp_path / "b.png")
    drawn, expected = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("a.png", "b.png"))
    assert drawn.shape == (20, 36, 3)
    assert np.abs(drawn - expected).max() <= 4  # levels of 255: half precision rounds elsewhere on another backend


def test_gemma_computes_in_float32_where_halves_overflow(sana_checkpoint: Path, tmp_path: Path) -> None:
    """As its larger ones do in places, and the graph is still of its checkpoint."""
    whole = load(sana_checkpoint)
    with torch.no_grad():
        whole.text_encoders["text_encoder"].get_parameter("layers.0.mlp.up_proj.weight").mul_(1e4)
        whole.text_encoders["text_encoder"].get_parameter("layers.0.mlp.down_proj.weight").mul_(1e3)
    whole.save(tmp_path / "large")
    loaded, _, islands = choose_precisions(lambda kinds: (load(tmp_path / "large", dtype=kinds), {}), {"": "fp16"})
    found = islands.pop("text_encoder")
    assert not islands
    assert [*found] == ["layers.0"]
    part = components(loaded)["text_encoder"]
    assert list(other_graph(part, to_onnx(part, tmp_path))) == []
    given = example(part, {"batch": 2})
    wide, narrow = (components(one)["text_encoder"].engine()(**given) for one in (whole, loaded))
    wanted, halves = wide["last_hidden_state"], narrow["last_hidden_state"].astype(np.float32)
    assert np.abs(halves - wanted).max() <= COMPONENT["fp16"].limit * np.abs(wanted).max()
