"""The folded step gives what the loop in NumPy gives."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import ldmrt.runtime
from ldmrt.export.bundle_writer import export_bundle
from ldmrt.export.components.table import components
from ldmrt.model import load
from ldmrt.runtime import LdmrtError, Plan, Request, plan_from_config, sample, steps
from ldmrt.runtime.backends.ort.engine import OrtEngine
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.graphs import FEEDBACK, STEP, step_specs
from ldmrt.runtime.parity.tolerances import COMPONENT
from ldmrt.runtime.pipeline.denoising.fused_step import FusedStep, StepCapacity, state, tables
from ldmrt.runtime.samplers.guidance import Guidance, classifier_free
from ldmrt.runtime.samplers.noise.counter import noise
from ldmrt.runtime.tensors import TensorSpec

from ...support.pipelines import save_pipeline

# Relative to the largest latent: the same float32 numbers, added up in another order, through all rows.
TOLERANCE = 1e-5
FILE = f"{STEP}.onnx"
SHAPE = (2, 4, 8, 10)
CONFIG = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
          "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}  # fmt: skip
TIMES = np.float32([1, 250, 500, 999])
SAMPLERS = ("ddim", "euler_a", "dpmpp_2m", "unipc", "heun", "lms", "pndm", "dpmpp_2s", "lcm")


@pytest.fixture(scope="module")
def engines(bundle: Path) -> Iterator[tuple[OrtEngine, OrtEngine]]:
    """The U-Net and its step."""
    pair = OrtEngine("unet", bundle / "unet" / "model.onnx"), OrtEngine("unet", bundle / "unet" / FILE)
    yield pair
    for one in pair:
        one.close()


def told(unet: OrtEngine, calls: int) -> dict[str, Any]:
    _, tokens, width = next(one.shape for one in unet.inputs if one.name == "encoder_hidden_states")
    context = np.random.default_rng(1).standard_normal((calls, int(tokens), int(width)), dtype=np.float32)
    return {"encoder_hidden_states": context}


def looped(unet: OrtEngine, guidance: Guidance, words: dict[str, Any]) -> Any:
    def model(x: Any, t: float) -> Any:
        times = np.full(len(guidance.idx), t, np.float32)
        return guidance.combine(unet(sample=x[guidance.idx], timestep=times, **words)["out_sample"])

    return model


def drawn(row: int) -> Any:
    return noise([5, 6], row + 1, SHAPE[1:])


def relative(found: Any, expected: Any) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def first(plan: Plan) -> Any:
    return noise([5, 6], 0, SHAPE[1:]) * np.float32(plan.prior_scale)


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("name", SAMPLERS)
def test_rows_are_those_of_the_loop(engines: tuple[OrtEngine, OrtEngine], name: str, scale: float) -> None:
    unet, step = engines
    plan, guidance = plan_from_config(CONFIG, 6, name=name), classifier_free(2, scale)
    words = told(unet, len(guidance.idx))
    ours = FusedStep(step, guidance, words).steps(plan, first(plan), drawn)
    theirs = steps(plan, first(plan), looped(unet, guidance, words), drawn)
    rows = 0
    for found, expected in zip(ours, theirs, strict=True):
        assert found.row == expected.row
        assert relative(found.x, expected.x) < TOLERANCE
        assert relative(found.x0, expected.x0) < TOLERANCE
        rows += 1
    assert rows == plan.rows


def test_sample_is_the_last_of_steps(engines: tuple[OrtEngine, OrtEngine]) -> None:
    unet, step = engines
    plan, guidance = plan_from_config(CONFIG, 5, name="dpmpp_2m_sde"), classifier_free(2, 3.0)
    folded = FusedStep(step, guidance, told(unet, 4))
    *_, last = folded.steps(plan, first(plan), drawn)
    np.testing.assert_array_equal(folded.sample(plan, first(plan), drawn), last.x)


def test_starts_from_a_picture(engines: tuple[OrtEngine, OrtEngine]) -> None:
    unet, step = engines
    plan, guidance = plan_from_config(CONFIG, 6, name="ddim", strength=0.5), classifier_free(2, 3.0)
    init = np.random.default_rng(2).standard_normal(SHAPE, dtype=np.float32)
    words, x = told(unet, 4), noise([5, 6], 0, SHAPE[1:])
    found = FusedStep(step, guidance, words).sample(plan, x, None, init)
    assert relative(found, sample(plan, x, looped(unet, guidance, words), None, init)) < TOLERANCE


def test_pictures_of_different_samplers_share_a_batch(engines: tuple[OrtEngine, OrtEngine]) -> None:
    """Each with its own table, number of rows and saved latents; the shorter one then stands still."""
    unet, step = engines
    plans = [plan_from_config(CONFIG, 3, name="unipc"), plan_from_config(CONFIG, 6, name="euler_a")]
    guidance, words = classifier_free(2, 3.0), told(unet, 4)
    x = np.concatenate([first(plan)[i : i + 1] for i, plan in enumerate(plans)])
    room = StepCapacity.of(plans)
    arrays = {
        **state(plans, x, drawn, room),
        **tables(plans, room),
        **words,
        "idx": guidance.idx,
        "weights": guidance.matrix,
    }
    binding = step.bind({name: array.shape for name, array in arrays.items()}, FEEDBACK)
    binding.upload(**arrays)
    for _ in range(6):
        binding.launch()
    found = binding.download("new_state")["new_state"][:, 0]
    for i, plan in enumerate(plans):
        alone, own = classifier_free(1, 3.0), {name: array[[i, 2 + i]] for name, array in words.items()}
        expected = sample(plan, x[i : i + 1], looped(unet, alone, own), lambda row, i=i: drawn(row)[i : i + 1])
        assert relative(found[i : i + 1], expected) < TOLERANCE


def test_uploaded_arrays_are_left_alone(engines: tuple[OrtEngine, OrtEngine]) -> None:
    unet, step = engines
    plan, guidance = plan_from_config(CONFIG, 4, name="dpmpp_2m"), classifier_free(2, 3.0)
    x, words = first(plan), told(unet, 4)
    kept = x.copy(), words["encoder_hidden_states"].copy()
    FusedStep(step, guidance, words).sample(plan, x, None)
    np.testing.assert_array_equal(x, kept[0])
    np.testing.assert_array_equal(words["encoder_hidden_states"], kept[1])


def test_step_has_no_weights_of_its_own(bundle: Path) -> None:
    """It reads those of the U-Net, which lie beside it."""
    inline = [one for one in onnx.load(bundle / "unet" / FILE, load_external_data=False).graph.initializer
              if one.data_location != onnx.TensorProto.EXTERNAL]  # fmt: skip
    assert sum(len(one.raw_data) for one in inline) < 65536
    assert (bundle / "unet" / FILE).stat().st_size < 2 * (bundle / "unet" / "model.onnx").stat().st_size


@pytest.mark.parametrize("change", ["controls", "variance"])
def test_no_step_where_the_network_is_told_or_says_more(bundle: Path, change: str) -> None:
    inputs, outputs = Bundle.open(bundle, check=False).specs("unet")
    if change == "controls":
        inputs = (*inputs, TensorSpec("mid_block_residual", "float32", ("batch", 32, "height/4", "width/4")))
    else:
        outputs = (replace(outputs[0], shape=("batch", 8, *outputs[0].shape[2:])),)
    assert step_specs(inputs, outputs) is None


def test_the_manifest_says_what_it_takes_and_gives(bundle: Path) -> None:
    """By dtype and shape in symbols, as the graph itself does; it is no component."""
    opened = Bundle.open(bundle, check=False)
    engine = OrtEngine(STEP, opened.model(STEP))
    assert opened.specs(STEP) == (engine.inputs, engine.outputs)
    assert (opened.home(STEP), opened.weights(STEP)) == ("unet", opened.weights("unet"))
    assert STEP in opened.graphs
    assert STEP not in opened.components
    assert STEP not in opened.components
    engine.close()


@pytest.mark.slow  # an export that no other test shares
def test_extra_channels_stand_beside_the_latents(tmp_path: Path) -> None:
    """Of models that fill a mask."""
    checkpoint = load(save_pipeline("sd15-inpainting", tmp_path / "inpainting"))
    for _ in export_bundle(checkpoint, tmp_path / "bundle", only=("unet",)):
        pass
    unet = OrtEngine("unet", tmp_path / "bundle" / "unet" / "model.onnx")
    step = OrtEngine("unet", tmp_path / "bundle" / "unet" / FILE)
    plan, guidance = plan_from_config(CONFIG, 3, name="ddim"), classifier_free(2, 3.0)
    words = told(unet, 4)
    beside = np.random.default_rng(3).standard_normal((4, 5, *SHAPE[2:]), dtype=np.float32)
    inputs = {"sample": np.concatenate([first(plan)[guidance.idx], beside], axis=1), "timestep": TIMES, **words}
    (exported,), (torchs,) = (engine(**inputs).values() for engine in (unet, components(checkpoint)["unet"].engine()))
    assert relative(exported, torchs) < COMPONENT["fp32"].limit

    def model(x: Any, t: float) -> Any:
        seen = np.concatenate([x[guidance.idx], beside], axis=1)
        return guidance.combine(unet(sample=seen, timestep=np.full(4, t, np.float32), **words)["out_sample"])

    found = FusedStep(step, guidance, {**words, "beside": beside}).sample(plan, first(plan), None)
    assert relative(found, sample(plan, first(plan), model)) < TOLERANCE


def opened(bundle: Path, **options: Any) -> Any:
    return ldmrt.runtime.open(bundle, check=False, **options)


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_pipeline_draws_the_same(bundle: Path, low_memory: bool) -> None:
    plain, folded = opened(bundle), opened(bundle, fused=True, low_memory=low_memory)
    assert plain.prepare("a red apple").fused is None
    asked = {"num_inference_steps": 4, "num_images_per_prompt": 2, "scheduler": "euler_a"}
    assert folded.prepare(Request("a red apple", **asked)).fused is not None
    one, other = (pipeline("a red apple", **asked).latents for pipeline in (plain, folded))
    assert relative(other, one) < TOLERANCE
    for pipeline in (plain, folded):
        pipeline.close()


@pytest.mark.parametrize(
    "asked",
    [{"guidance_rescale": 0.5}, {"cfg_normalization": 1.0}, {"guidance_interval": (0.5, 2.0)}, {"scheduler": "ddpm"}],
    ids=str,
)
def test_what_is_not_linear_runs_in_the_loop(bundle: Path, asked: dict[str, Any]) -> None:
    pipeline = opened(bundle, fused=True)
    if "scheduler" in asked:  # its config clips
        pipeline = replace(pipeline, scheduler={**pipeline.scheduler, "clip_sample": True})
    assert pipeline.prepare(Request("a red apple", **asked)).fused is None


def test_a_bundle_without_a_step_is_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "unet" / FILE).unlink()
    with pytest.raises(LdmrtError, match="has no fused step"):
        opened(tmp_path / "bundle", fused=True)


def test_what_is_not_finite_is_laid_at_its_row(bundle: Path) -> None:
    pipeline = opened(bundle, fused=True)
    latents = np.full((1, 4, 8, 8), np.nan, np.float32)
    with pytest.raises(LdmrtError, match="not finite after row 0"):
        pipeline("a red apple", num_inference_steps=3, latents=latents)
