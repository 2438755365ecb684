"""A checkpoint with a tiny autoencoder draws what diffusers' pipelines draw, from its folder to its bundle."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from ldmrt.export.components.table import components
from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.export.graph.cpu.upsample import FIRST as FOLDED
from ldmrt.export.graph.to_onnx import to_onnx
from ldmrt.model import load
from ldmrt.model.checkpoint.load import load_first_stage
from ldmrt.runtime import LdmrtError, Pipeline
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.backends.ort.engine import OrtEngine
from ldmrt.runtime.files.recognise import AUTOENCODER, kind_of
from ldmrt.runtime.parity.metrics import psnr, tensor_error
from ldmrt.runtime.parity.tolerances import COMPONENT
from ldmrt.runtime.samplers.noise.counter import FIRST, MASKED

from ...support.pipelines import randomise
from ...tools.conftest import command
from ..test_tasks import HEIGHT, PROMPTS, SEEDS, STEPS, WIDTH, close, drawing, mask, picture

# Two levels, as the checkpoint's own autoencoder has: a latent is two pixels.
TINY: dict[str, Any] = {
    "encoder_block_out_channels": [8, 8],
    "decoder_block_out_channels": [16, 16],
    "num_encoder_blocks": [1, 2],
    "num_decoder_blocks": [2, 1],
}
PARTS = ("vae_decoder", "vae_encoder")
SIZES = {"batch": 2, "height": HEIGHT, "width": WIDTH}
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers


def tiny(**change: Any) -> Any:
    torch.manual_seed(5)
    return randomise(diffusers.AutoencoderTiny(**{**TINY, **change}))


@pytest.fixture(scope="module")
def place(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What users write: a pipeline whose `vae` was replaced, saved by diffusers."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    pipeline.vae = tiny()
    folder = tmp_path_factory.mktemp("tiny-autoencoder") / "checkpoint"
    pipeline.save_pretrained(folder)
    shutil.copytree(checkpoint / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module", params=["torch", "onnx"])
def ours(request: pytest.FixtureRequest, place: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    pipeline = torch_pipeline(load(place))
    if request.param == "torch":
        return pipeline
    parts, folder = components(load(place)), tmp_path_factory.mktemp("tiny-onnx")
    engines: dict[str, Any] = {name: part.engine for name, part in parts.items()}
    for name in PARTS:
        engines[name] = partial(OrtEngine, name, to_onnx(parts[name], folder / name))
    return replace(pipeline, engines=LazyEngines(engines))


KIND = {
    "text to image": ("StableDiffusionPipeline", [FIRST]),
    "image to image": ("StableDiffusionImg2ImgPipeline", [FIRST]),  # of the image no noise is drawn: no Gaussian
    "inpainting": ("StableDiffusionInpaintPipeline", [FIRST, MASKED]),
}


@pytest.mark.parametrize("task", KIND)
def test_model_draws_what_diffusers_draws(
    task: str, place: Path, ours: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, streams = KIND[task]
    image = picture().resize((WIDTH, HEIGHT))
    area = mask().resize((WIDTH, HEIGHT), 0)
    told: dict[str, Any] = {} if task == "text to image" else {"image": image, "strength": 0.7}
    told |= {"mask_image": area} if task == "inpainting" else {}
    size = {} if task == "image to image" else {"height": HEIGHT, "width": WIDTH}
    asked: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": 4.0}

    def theirs(output_type: str) -> NDArray[np.float32]:
        pipeline = getattr(diffusers, kind).from_pretrained(place, safety_checker=None)
        assert isinstance(pipeline.vae, diffusers.AutoencoderTiny)
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        drawing(pipeline, SEEDS, streams, monkeypatch)
        each = {name: [value] * 2 if name != "strength" else value for name, value in told.items()}
        images = pipeline(PROMPTS, output_type=output_type, **asked, **each, **size).images
        return images.numpy() if output_type == "latent" else images

    found = ours(PROMPTS, seed=SEEDS, scheduler="ddim", output_type="np", height=HEIGHT, width=WIDTH, **asked, **told)
    close(found.latents, theirs("latent"))
    expected = theirs("np")
    assert np.ptp(expected) > 0.1
    levels = [(array * 255).round().astype(np.uint8) for array in (found.array, expected)]
    assert psnr(*levels) > 60  # a level here and there


@pytest.mark.slow(minutes=0.06)
def test_graphs_are_folded_and_have_no_parts_for_tiles(place: Path, tmp_path: Path) -> None:
    """Convolutions after doubling have no bias here, and run before it on the CPU."""
    part = components(load(place))["vae_decoder"]
    assert part.graphs == {}  # the network itself runs in tiles
    file = to_onnx(part, tmp_path / "decoder")
    graphs = [onnx.load(path, load_external_data=False).graph for path in file.parent.glob("*.onnx")]
    folded = [graph for graph in graphs if any(one.name.endswith(FOLDED) for one in graph.initializer)]
    assert folded
    assert not any(node.op_type == "Resize" for graph in folded for node in graph.node)


def test_networks_are_diffusers(place: Path, ours: Pipeline) -> None:
    """Within what a certificate allows; folded convolutions sum in another order."""
    theirs = diffusers.AutoencoderTiny.from_pretrained(place / "vae").eval()
    rng, limit = np.random.default_rng(0), COMPONENT["fp32"].limit
    for name, run in zip(PARTS, (theirs.decode, theirs.encode), strict=True):
        network = ours.engines[name]
        (taken,) = network.inputs
        value = rng.uniform(-1, 1, (2, taken.shape[1], 10, 14)).astype(np.float32)
        with torch.no_grad():
            (expected,) = run(torch.from_numpy(value), return_dict=False)
        (found,) = network(**{taken.name: value}).values()
        assert tensor_error("", "", "", name, found, expected.numpy(), limit).relative <= limit


def test_large_images_are_drawn_in_tiles(ours: Pipeline) -> None:
    """As diffusers does: it is not the image of the whole, for a tile misses what its convolutions see beyond."""
    asked: dict[str, Any] = {"num_inference_steps": 2, "seed": 1, "height": 64, "width": 96, "output_type": "np"}
    whole = ours("two pears", **asked).array
    cut = replace(ours, decoding=replace(ours.decoding, tile=48))("two pears", **asked).array
    assert 30 < psnr(*((array * 255).round().astype(np.uint8) for array in (cut, whole))) < np.inf


@pytest.mark.slow(minutes=0.11)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_halves_hold_their_tolerance(dtype: str, place: Path, tmp_path: Path) -> None:
    wide = components(load(place))
    narrow = components(load(place, dtype={"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]))
    for name in PARTS:
        assert narrow[name].precision == dtype
        engine = narrow[name].engine()
        if dtype == "fp16":
            engine = OrtEngine(name, to_onnx(narrow[name], tmp_path / name))
        rng = np.random.default_rng(0)
        spec = wide[name].inputs[0]
        value = rng.uniform(-1, 1, (2, spec.shape[1], 16, 12)).astype(np.float32)
        (expected,) = wide[name].engine()(**{spec.name: value}).values()
        (found,) = engine(**{spec.name: value.astype(narrow[name].inputs[0].dtype)}).values()
        error = tensor_error("", "", "", name, found.astype(np.float32), expected, 0.0)
        assert error.relative <= COMPONENT[dtype].limit


def test_latents_of_16_channels(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of taesd3 and taef1, beside a U-Net of as many channels; one of 4 is refused before a weight is read."""
    tiny(latent_channels=16).save_pretrained(tmp_path / "vae")
    with pytest.raises(LdmrtError, match=r"in_channels of unet/config.json is not latent_channels .*found 4"):
        load(place, parts={"vae": tmp_path / "vae"})
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(place, safety_checker=None)
    settings = {**pipeline.unet.config, "in_channels": 16, "out_channels": 16}
    pipeline.vae, pipeline.unet = tiny(latent_channels=16), diffusers.UNet2DConditionModel.from_config(settings).eval()
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.register_to_config(vae=("diffusers", "AutoencoderTiny"))
    pipeline.save_pretrained(tmp_path / "checkpoint")
    shutil.copytree(place / "tokenizer", tmp_path / "checkpoint" / "tokenizer", dirs_exist_ok=True)
    ours = torch_pipeline(load(tmp_path / "checkpoint"))
    assert ours.stage.space.channels == 16
    drawing(pipeline, SEEDS, [FIRST], monkeypatch)
    pipeline.set_progress_bar_config(disable=True)
    asked: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "height": HEIGHT, "width": WIDTH}
    expected = pipeline(PROMPTS, output_type="np", **asked).images
    found = ours(PROMPTS, seed=SEEDS, output_type="np", **asked).array
    assert psnr(*((array * 255).round().astype(np.uint8) for array in (found, expected))) > 60


def test_saved_folder_is_read_by_diffusers(place: Path, tmp_path: Path) -> None:
    checkpoint = load(place)
    checkpoint.save(tmp_path / "saved")
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "saved", safety_checker=None)
    assert isinstance(again.vae, diffusers.AutoencoderTiny)
    expected = checkpoint.vae.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in again.vae.state_dict().items())


def test_another_autoencoder_is_of_the_class_that_its_config_names(
    checkpoint: Path, place: Path, tmp_path: Path
) -> None:
    """A tiny one takes the place of a checkpoint's own, and the other way round."""
    changed = load(checkpoint, parts={"vae": place / "vae"})
    assert changed.stage.space.codec == "tiny"
    assert changed.stage == load(place).stage
    assert load(place, parts={"vae": checkpoint / "vae"}).stage == load(checkpoint).stage
    assert kind_of(place / "vae") == AUTOENCODER
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "ConsistencyDecoderVAE"}))
    with pytest.raises(
        LdmrtError, match=r"vae: unsupported ConsistencyDecoderVAE in config.json; expected AutoencoderKL or"
    ):
        load(checkpoint, parts={"vae": tmp_path})


def test_nothing_is_trained_in_its_latents(place: Path) -> None:
    with pytest.raises(LdmrtError, match="vae: a tiny autoencoder cannot be trained with; expected AutoencoderKL or"):
        load_first_stage(place)


@pytest.mark.slow  # a whole bundle
def test_exported_by_option_it_is_verified_and_draws(checkpoint: Path, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert command("export", checkpoint, out, "--vae", place / "vae") == 0
    assert command("verify", out) == 0
    with open_pipeline(out) as pipeline:
        image = picture().resize((WIDTH, HEIGHT))
        asked: dict[str, Any] = {"num_inference_steps": STEPS, "seed": SEEDS, "image": image, "strength": 0.7}
        expected = torch_pipeline(load(checkpoint, parts={"vae": place / "vae"}))(PROMPTS, **asked)
        close(pipeline(PROMPTS, **asked).latents, expected.latents)


@pytest.mark.slow  # a whole bundle
def test_exported_in_halves_it_is_verified(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert command("export", place, out, "--precision", "fp16", "--fp32-decoder") == 0
    assert command("verify", out, "--against", place) == 0
