"""A Stable Diffusion 3 goes the whole way on the command line: exported in half precision, certified, drawn."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file, save_file

from ldmrt.export.components.table import components, example
from ldmrt.export.graph.to_onnx import to_onnx
from ldmrt.export.parity.bisect import bisect
from ldmrt.model import load
from ldmrt.model.textual_inversion.merge import add_embeddings, read_embedding
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.tools.cli import cli

pytestmark = pytest.mark.slow(minutes=1)
ENCODERS = ("clip_l", "clip_g", "t5")  # the names of their vectors in a file


def ran(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def word(sd3_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A textual inversion for all three encoders, whose word is the file's name."""
    encoders = zip(ENCODERS, load(sd3_checkpoint).text_encoders.values(), strict=True)
    tables = {name: encoder.get_input_embeddings().weight for name, encoder in encoders}
    file = tmp_path_factory.mktemp("words") / "pearword.safetensors"
    torch.manual_seed(1)
    save_file({name: torch.randn(1, table.shape[1]) * table.std().item() for name, table in tables.items()}, file)
    return file


@pytest.fixture(scope="module")
def half(sd3_checkpoint: Path, word: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half") / "bundle"
    ran("export", sd3_checkpoint, folder, "--precision", "fp16", "--skip-layers", "0,2", "--embedding", word)
    return folder


def test_the_certificate_holds(half: Path, sd3_checkpoint: Path, word: Path) -> None:
    """The recorded image has steps with a row that skips layers; the checkpoint is loaded with those of the bundle."""
    bundle = Bundle.open(half)
    assert bundle.certificate_issues == []
    assert bundle.components == (
        "text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae_decoder", "vae_encoder",
    )  # fmt: skip
    assert bundle.manifest["prediction_type"] == "flow_prediction"
    ran("verify", half)
    ran("verify", half, "--against", sd3_checkpoint, "--embedding", word)
    other = ["verify", str(half), "--against", str(sd3_checkpoint), "--embedding", str(word), "--skip-layers", "0"]
    assert "this network skips other layers; expected 0,2; found 0" in str(CliRunner().invoke(cli, other).exception)


@pytest.mark.parametrize("how", [("--low-memory",), ("--backend", "openvino")])
def test_draws(how: tuple[str, ...], half: Path, tmp_path: Path) -> None:
    ran("generate", half, "two pears", "--steps", 4, "--prompt-2", "pears", "--out", tmp_path / "a.png", *how)
    ran("generate", half, "two pears", "--steps", 4, "--prompt-2", "pears", "--out", tmp_path / "b.png")
    drawn, expected = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("a.png", "b.png"))
    assert drawn.shape == (16, 16, 3)
    assert np.abs(drawn - expected).max() <= 4  # levels of 255: half precision rounds elsewhere on another backend


def test_an_embedding_is_one_token_of_each_encoder(half: Path, sd3_checkpoint: Path, word: Path) -> None:
    """Every encoder of the bundle reads the word as transformers' does whose table has the vector at its place."""
    loaded = load(sd3_checkpoint)
    add_embeddings(loaded.text_encoders, loaded.tokenizers, [read_embedding(word)])
    assert "pearword" in ran("inspect", half).output
    with open_pipeline(half, check=False) as pipeline, torch.no_grad():
        for number, vector in zip(("", "_2", "_3"), (load_file(word)[name] for name in ENCODERS), strict=True):
            ids = pipeline.tokenizers[f"tokenizer{number}"](["a pearword"])[:, :256]  # T5's, which are padded to 512
            theirs = loaded.text_encoders[f"text_encoder{number}"]
            assert (theirs.get_input_embeddings().weight[ids] == vector).all(-1).any()
            states = pipeline.engines[f"text_encoder{number}"](input_ids=ids)["last_hidden_state"]
            expected = theirs(torch.from_numpy(ids)).last_hidden_state.numpy()
            assert np.abs(states - expected).max() <= 0.01 * np.abs(expected).max()  # of half precision, as verified


def test_sizes_that_it_cannot_draw_are_not_built(half: Path) -> None:
    for size, problem in (("18x18", "multiples of 4"), ("100x100", "sides of at most 96")):
        result = CliRunner().invoke(cli, ["plan", str(half), "--sizes", size])
        assert problem in str(result.exception)


def test_is_described_and_planned(half: Path) -> None:
    told = "the network is given state, timestep, joint prompt, joint pooled prompt, kept layers; guided by"
    assert f"{told} skip_layer_guidance_scale and guidance_scale (7 by default)" in ran("inspect", half).output
    assert "transformer" in ran("plan", half, "--sizes", "16x16").output


def test_graph_that_skips_layers_module_by_module(sd3_checkpoint: Path, tmp_path: Path) -> None:
    """Every second row of the example skips them."""
    part = components(load(sd3_checkpoint, skip_layers=[0, 2]))["transformer"]
    given = example(part, {"batch": 3, "height": 24, "width": 16, "timesteps": 3})
    assert given["kept_layers"].tolist() == [1, 0, 1]
    assert bisect(part, to_onnx(part, tmp_path), given, tolerance=2e-5).first is None
    skipping, keeping = (part.engine()(**{**given, "kept_layers": np.full(3, kept, np.float32)})["out_hidden_states"]
                         for kept in (0, 1))  # fmt: skip
    assert (skipping[1] != keeping[1]).any()


def test_skips_layers_on_the_command_line(half: Path, tmp_path: Path) -> None:
    asked = ("two pears", "--steps", 8, "--skip-guidance-layers", "0,2", "--skip-layer-guidance-scale", 3)
    ran("generate", half, *asked, "--out", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image, open_pipeline(half) as pipeline:
        told = json.loads(image.info["ldmrt"])
        given = {name: told[name] for name in ("skip_guidance_layers", "skip_layer_guidance_scale")}
        assert given == {"skip_guidance_layers": [0, 2], "skip_layer_guidance_scale": 3}
        drawn = [pipeline("two pears", num_inference_steps=8, **one).pixels[0] for one in (given, {})]
        assert (np.asarray(image) == drawn[0]).all()
        assert (drawn[0] != drawn[1]).any()
