"""ControlNets and T2I-Adapters: our pipeline with one and with two of them against diffusers', then bundles of them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ldmrt.export.bundle_writer import export_bundle
from ldmrt.export.components.table import components
from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.export.graph.to_onnx import to_onnx
from ldmrt.export.parity.origin import other_origin
from ldmrt.export.parity.record import record
from ldmrt.model import Checkpoint, load, load_adapter, load_controlnet
from ldmrt.runtime import Bundle, LdmrtError, Pipeline
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.backends.ort.engine import OrtEngine
from ldmrt.runtime.parity.compare import compare
from ldmrt.runtime.parity.tolerances import tolerances
from ldmrt.runtime.samplers.noise.counter import FIRST

from ...conftest import sharing
from ...support.families import FAMILIES
from ...support.pipelines import randomise, save_pipeline
from ..test_tasks import drawing

PROMPTS, SEEDS, STEPS, SIZE = ["a red apple", "two pears"], [3, 4], 4, 16
TOLERANCE = 2e-4  # relative to the largest latent: two programs' float32 through four rows, with guidance
ASKED: dict[str, Any] = {
    "negative_prompt": "blurred",
    "num_inference_steps": STEPS,
    "guidance_scale": 4.0,
    "seed": SEEDS,
}
LOAD: dict[str, Callable[..., Any]] = {"controlnet": load_controlnet, "adapter": load_adapter}
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # of diffusers
    pytest.mark.filterwarnings("ignore:.*no parity certificate"),  # no bundle here was verified when it was made
]

# What is changed in a family's U-Net, so that it is small or the adapter fits; diffusers' pipeline; the adapter.
ADAPTERS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "sd15": ({}, "StableDiffusionAdapterPipeline", {"channels": (16, 32), "downscale_factor": 2}),
    "sd15 light": (
        {"block_out_channels": [16, 16]},
        "StableDiffusionAdapterPipeline",
        {"channels": (16,), "downscale_factor": 2, "adapter_type": "light_adapter"},
    ),
    "sdxl": (
        {"transformer_layers_per_block": 1},
        "StableDiffusionXLAdapterPipeline",
        {"channels": (16, 16, 32, 32), "downscale_factor": 4, "adapter_type": "full_adapter_xl"},
    ),
}
GREY = "sketch"  # the adapter that takes one channel
SCALES: list[dict[str, float]] = [{"colour": 1.0}, {GREY: 0.4}, {"colour": 0.7, GREY: 1.3}]


@pytest.fixture(scope="module")
def places(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By name, a checkpoint and two adapters for it, made when first asked for; SD 1.5's has two ControlNets too."""

    class Saved(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            place = self[name] = tmp_path_factory.mktemp("control")
            change, _, config = ADAPTERS[name]
            family = name.split()[0]
            save_pipeline(family, place / "checkpoint")
            for part in ("tokenizer", "text_encoder", "vae") if family == "sd15" else ():  # exported for all tests
                shutil.rmtree(place / "checkpoint" / part)
                shutil.copytree(checkpoint / part, place / "checkpoint" / part)
            unet = randomise(diffusers.UNet2DConditionModel(**FAMILIES[family].unet | change))
            unet.save_pretrained(place / "checkpoint" / "unet")
            for seed, (adapter, channels) in enumerate((("colour", 3), (GREY, 1))):
                made = diffusers.T2IAdapter(in_channels=channels, num_res_blocks=1, **config)
                randomise(made, seed).save_pretrained(place / f"adapter_{adapter}")
            for seed, net in enumerate(("canny", "depth")) if name == "sd15" else ():
                control = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))
                randomise(control, seed).save_pretrained(place / f"controlnet_{net}")
            return place

    return Saved()


def loaded(place: Path, *names: str) -> Checkpoint:
    """The checkpoint with the controls of these folders."""
    controls = {name: LOAD[name.partition("_")[0]](place / name) for name in names}
    return replace(load(place / "checkpoint"), controls=controls)


def adapted(place: Path) -> Checkpoint:
    return loaded(place, "adapter_colour", f"adapter_{GREY}")


def edges(seed: int) -> Image.Image:
    """Of another size than is asked for."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 24, 3), np.uint8))


def controls(scales: dict[str, float]) -> dict[str, Any]:
    """A picture for each: both sides resize it, and we take its grey where diffusers is given it."""
    return {name: (edges(seed), scale) for seed, (name, scale) in enumerate(scales.items())}


def close(found: NDArray[Any], expected: NDArray[Any]) -> None:
    assert expected.std() > 0.1
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def unlike(found: NDArray[Any], expected: NDArray[Any]) -> None:
    assert np.abs(found - expected).max() > 10 * TOLERANCE * np.abs(expected).max()


def drawn(pipeline: Any, monkeypatch: pytest.MonkeyPatch, **asked: Any) -> NDArray[np.float32]:
    """The latents of a pipeline of diffusers."""
    pipeline.set_progress_bar_config(disable=True)
    drawing(pipeline, SEEDS, [FIRST], monkeypatch)
    out = pipeline(PROMPTS, negative_prompt=["blurred"] * 2, num_inference_steps=STEPS, guidance_scale=4.0,
                   height=SIZE, width=SIZE, output_type="latent", **asked)  # fmt: skip
    return out.images.numpy()


def with_adapters(
    name: str, place: Path, scales: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> NDArray[np.float32]:
    """What diffusers draws with one adapter, or with several as a MultiAdapter."""
    adapters = [diffusers.T2IAdapter.from_pretrained(place / f"adapter_{one}") for one in scales]
    images = [[edges(seed).convert("L" if one == GREY else "RGB")] * len(PROMPTS) for seed, one in enumerate(scales)]
    several = len(adapters) > 1
    pipeline = getattr(diffusers, ADAPTERS[name][1]).from_pretrained(
        place / "checkpoint", adapter=diffusers.MultiAdapter(adapters) if several else adapters[0]
    )
    factors = list(scales.values())
    return drawn(
        pipeline, monkeypatch,
        image=images if several else images[0], adapter_conditioning_scale=factors if several else factors[0],
    )  # fmt: skip


@pytest.mark.parametrize("scales", [{"canny": 1.0}, {"canny": 0.4}, {"canny": 0.7, "depth": 1.3}])
def test_controlnets_draw_what_diffusers_draws(
    scales: dict[str, float], places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = places["sd15"]
    nets = [diffusers.ControlNetModel.from_pretrained(place / f"controlnet_{name}") for name in scales]
    pipeline = diffusers.StableDiffusionControlNetPipeline.from_pretrained(
        place / "checkpoint", controlnet=nets, safety_checker=None
    )
    images = [edges(seed) for seed in range(len(nets))]
    expected = drawn(pipeline, monkeypatch, image=images, controlnet_conditioning_scale=list(scales.values()))
    ours = torch_pipeline(loaded(place, "controlnet_canny", "controlnet_depth"))
    close(ours(PROMPTS, controls=controls(scales), **ASKED).latents, expected)
    unlike(ours(PROMPTS, **ASKED).latents, expected)


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_draw_what_diffusers_draws(
    name: str, scales: dict[str, float], places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = with_adapters(name, places[name], scales, monkeypatch)
    ours = torch_pipeline(adapted(places[name]))
    close(ours(PROMPTS, controls=controls(scales), **ASKED).latents, expected)
    unlike(ours(PROMPTS, **ASKED).latents, expected)


# XL's U-Net is exported in bundle/test_exported_families.py, and one with features in the bundle below.
EXPORTED = [["adapter_colour"], pytest.param(["unet", "adapter_colour", f"adapter_{GREY}"], marks=pytest.mark.slow)]


@pytest.mark.parametrize("exported", EXPORTED, ids=["adapter", "all"])
def test_xl_on_onnx_draws_what_diffusers_draws(
    exported: list[str], places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its U-Net and adapters: the other components know of no adapter."""
    parts = components(adapted(places["sdxl"]))
    engines: dict[str, Any] = {name: part.engine for name, part in parts.items()}
    for name in exported:
        engines[name] = partial(OrtEngine, name, to_onnx(parts[name], tmp_path / name))
    ours = replace(torch_pipeline(adapted(places["sdxl"])), engines=LazyEngines(engines))
    for scales in SCALES[1:]:
        expected = with_adapters("sdxl", places["sdxl"], scales, monkeypatch)
        close(ours(PROMPTS, controls=controls(scales), **ASKED).latents, expected)
    ours.close()


@pytest.fixture(scope="module")
def mixed(places: dict[str, Path]) -> Checkpoint:
    return loaded(places["sd15"], "controlnet_canny", "adapter_colour", f"adapter_{GREY}")


@pytest.fixture(scope="module")
def bundle(mixed: Checkpoint, export_once: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("control") / "bundle"
    with sharing(export_once):
        for _ in export_bundle(mixed, folder):
            pass
    return folder


@pytest.fixture(params=["onnxruntime", "openvino"])
def pipeline(bundle: Path, request: pytest.FixtureRequest) -> Pipeline:
    return open_pipeline(bundle, request.param)


@pytest.mark.slow  # a bundle that no other test shares
@pytest.mark.parametrize("scales", SCALES)
def test_bundle_with_adapters_draws_what_diffusers_draws(
    scales: dict[str, float], pipeline: Pipeline, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = with_adapters("sd15", places["sd15"], scales, monkeypatch)
    close(pipeline(PROMPTS, controls=controls(scales), **ASKED).latents, expected)


@pytest.mark.slow  # a bundle that no other test shares
@pytest.mark.parametrize("size", [16, 18])  # of which the second is not a whole number of the deepest latents
def test_bundle_steers_as_its_checkpoint_does(size: int, pipeline: Pipeline, mixed: Checkpoint) -> None:
    reference = torch_pipeline(mixed)
    drawings = []
    for scales in ({}, {"canny": 1.0}, {"canny": 0.5}, {"canny": 0.5, "colour": 0.8}, {"colour": 0.8}):
        asked = {"num_inference_steps": 2, "controls": controls(scales), "width": size, "height": size}
        found, expected = (p(PROMPTS, **asked).latents for p in (pipeline, reference))
        close(found, expected)
        for other in drawings:
            unlike(found, other)
        drawings.append(found)
    with pytest.raises(LdmrtError, match=f"no control 'pose' here; expected canny, colour, {GREY}"):
        pipeline(PROMPTS, controls={"pose": edges(0)})


@pytest.mark.slow  # a bundle that no other test shares
def test_bundle_passes_the_parity_check_and_states_its_controls(
    bundle: Path, pipeline: Pipeline, mixed: Checkpoint
) -> None:
    opened = Bundle.open(bundle)
    assert other_origin(opened, mixed) == []
    rows = {row.what: row for row in compare(pipeline, "onnxruntime", record(mixed, PROMPTS[0]), tolerances(opened))}
    assert {"unet", "controlnet_canny", "adapter_colour", f"adapter_{GREY}", "rows", "picture"} < rows.keys()
    assert all(row.within for row in rows.values())
    # two libraries take sums in another order; exactly zero would be a thing compared with itself
    assert 0 < max(figure.relative for figure in rows["adapter_colour"].figures) < 1e-5
    manifest = json.loads((bundle / "ldmrt.json").read_text())
    assert manifest["components"][f"adapter_{GREY}"]["inputs"] == [
        ["adapter_cond", "float32", ["batch", 1, "height", "width"]],
        ["conditioning_scale", "float32", ["batch"]],
    ]
    config = json.loads((bundle / f"adapter_{GREY}" / "config.json").read_text())
    assert (config["_class_name"], config["in_channels"]) == ("T2IAdapter", 1)


def test_inputs_of_the_unet_are_what_its_controls_give(places: dict[str, Path]) -> None:
    canny, colour = "controlnet_canny", "adapter_colour"
    residuals = [*(f"down_block_residual_{i}" for i in range(4)), "mid_block_residual"]
    features = [f"down_intrablock_residual_{i}" for i in range(3)]
    for names, given in (
        ((), []),
        ((canny,), residuals),
        ((colour,), features),
        ((colour, canny), residuals + features),
    ):
        inputs = components(loaded(places["sd15"], *names))["unet"].inputs
        assert [spec.name for spec in inputs] == ["sample", "timestep", "encoder_hidden_states", *given]


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("sd15", "sdxl", "adapter_mine: does not fit this U-Net in down_intrablock_residual_0"),
        ("sdxl", "sd15", "adapter_mine: does not fit this U-Net in down_intrablock_residual_0"),
        ("sd15", {"channels": (16, 24)}, r"residual_1; expected .*32, 'height/4'.*; found .*24, 'height/4'"),
        ("sd15", {"channels": (16, 32), "adapter_type": "light_adapter"}, r"residual_2; .*; found .*'height/8'"),
        ("sd15", {"channels": (16, 32, 32, 32)}, r"residual_2; .*; found .*'height/8'"),
        ("sdxl", {"channels": (16, 16, 32, 32, 32), "adapter_type": "full_adapter_xl", "downscale_factor": 4},
         "residual_4; expected only down_intrablock_residual_0, .*_3; found"),
    ],
)  # fmt: skip
def test_adapter_of_another_family_is_refused_before_anything_is_written(
    name: str, config: Any, message: str, places: dict[str, Path], tmp_path: Path
) -> None:
    made = ADAPTERS[config][2] if isinstance(config, str) else {"downscale_factor": 2, **config}
    diffusers.T2IAdapter(**made).save_pretrained(tmp_path / "adapter")
    checkpoint = replace(loaded(places[name]), controls={"adapter_mine": load_adapter(tmp_path / "adapter")})
    with pytest.raises(LdmrtError, match=message):
        list(export_bundle(checkpoint, tmp_path / "deep" / "bundle"))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_two_controls_of_one_name_are_refused(places: dict[str, Path]) -> None:
    checkpoint = loaded(places["sd15"], "controlnet_canny", "adapter_colour")
    renamed = dict(zip(("controlnet_one", "adapter_one"), checkpoint.controls.values(), strict=True))
    with pytest.raises(LdmrtError, match="two controls are named 'one'"):
        components(replace(checkpoint, controls=renamed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_out_channels": [16, 24]}, "down_block_residual_3; expected .*, 32, .*; found .*, 24, "),
        ({"cross_attention_dim": 32}, "cross_attention_dim; expected 24; found 32"),  # SD 2's beside SD 1.5
    ],
)
def test_controlnet_of_another_family_is_refused(
    change: dict[str, Any], message: str, places: dict[str, Path], tmp_path: Path
) -> None:
    unet = diffusers.UNet2DConditionModel(**FAMILIES["sd15"].unet | change)
    made = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))
    made.save_pretrained(tmp_path)
    foreign = {"controlnet_mine": load_controlnet(tmp_path)}
    with pytest.raises(LdmrtError, match=f"controlnet_mine: does not fit this U-Net in {message}"):
        components(replace(loaded(places["sd15"]), controls=foreign))
