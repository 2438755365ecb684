"""What the pipeline asks of its engines, with engines that count and lie."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ldmrt.runtime import BundleError, LdmrtError, Pipeline, Request
from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.pipeline.conditioning.context import Context
from ldmrt.runtime.pipeline.request.images import GivenImages
from ldmrt.runtime.samplers.noise.sources import CountedNoise
from ldmrt.runtime.tensors import TensorSpec, conform
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

from ...support.fakes.stages import plain

Array = NDArray[Any]
SCHEDULER = {"_class_name": "EulerDiscreteScheduler", "prediction_type": "sample"}


class Fake:
    """An engine that remembers what it was given."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self, answer: Any) -> None:
        self.answer, self.calls, self.closed = answer, [], False

    def __call__(self, **arrays: Array) -> dict[str, Array]:
        self.calls.append(arrays)
        return self.answer(arrays)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def pipeline(bundle: Path) -> Pipeline:
    """A text's context is its ids; the network says that x0 is the context's third id; a picture is its latents."""

    def unet(arrays: dict[str, Array]) -> dict[str, Array]:
        third = arrays["encoder_hidden_states"][:, 2, 0]
        return {"out_sample": np.ones_like(arrays["sample"]) * third[:, None, None, None].astype(np.float32)}

    engines = {
        "text_encoder": Fake(lambda a: {"last_hidden_state": a["input_ids"][..., None].astype(np.float32)}),
        "unet": Fake(unet),
        "vae_decoder": Fake(lambda a: {"sample": a["latent_sample"][:, :3]}),
    }
    engines["unet"].inputs = (TensorSpec("sample", "float32", ("batch", 4, "height/2", "width/2")),)
    makers = {name: partial(lambda engine: engine, engine) for name, engine in engines.items()}
    tokenizers = {"tokenizer": Tokenizer.open(bundle / "tokenizer")}
    return Pipeline(LazyEngines(makers), tokenizers, SCHEDULER, plain(4, 2, 0.5, 16))


def test_equal_texts_are_encoded_once(pipeline: Pipeline) -> None:
    pipeline(["a pear", "a cat", "a pear"], num_images_per_prompt=2, num_inference_steps=2)
    encoder = pipeline.engines["text_encoder"]
    assert [call["input_ids"].shape for call in encoder.calls] == [(3, 16)]  # "", "a pear", "a cat"
    first = pipeline.engines["unet"].calls[0]["encoder_hidden_states"][..., 0]
    texts = [""] * 6 + ["a pear"] * 2 + ["a cat"] * 2 + ["a pear"] * 2
    np.testing.assert_array_equal(first, pipeline.tokenizers["tokenizer"](texts))


@pytest.mark.parametrize(("guidance", "rows"), [(5.0, 4), (0.0, 2), (1.0, 2)])
def test_rows_of_the_network(pipeline: Pipeline, guidance: float, rows: int) -> None:
    pipeline("a cat", num_images_per_prompt=2, num_inference_steps=3, guidance_scale=guidance)
    calls = pipeline.engines["unet"].calls
    assert len(calls) == 3
    assert {call["sample"].shape for call in calls} == {(rows, 4, 8, 8)}
    assert {call["timestep"].shape for call in calls} == {(rows,)}
    assert [call["timestep"][0] for call in calls] == [999.0, 499.5, 0.0]


def test_guidance_weighs_the_prompts(pipeline: Pipeline) -> None:
    negative, positive = pipeline.tokenizers["tokenizer"](["two pears", "a cat"])[:, 2]
    found = pipeline("a cat", negative_prompt="two pears", guidance_scale=3.0, num_inference_steps=2).latents
    np.testing.assert_allclose(found, 3.0 * positive - 2.0 * negative, rtol=1e-6)  # one float32 sum


def test_first_latents_are_scaled_by_the_plan(pipeline: Pipeline) -> None:
    given = np.ones((1, 4, 8, 8))
    pipeline("a cat", num_inference_steps=2, latents=given)
    scale = pipeline.plan(Request("a cat", num_inference_steps=2)).prior_scale
    assert 0.9 < scale < 1.0
    np.testing.assert_array_equal(pipeline.engines["unet"].calls[0]["sample"], np.float32(scale))


def test_decoder_sees_one_unscaled_picture_at_a_time(pipeline: Pipeline) -> None:
    latents = np.linspace(-1, 1, 3 * 4 * 4, dtype=np.float32).reshape(3, 4, 2, 2)
    images = pipeline.decode(latents)
    calls = pipeline.engines["vae_decoder"].calls
    np.testing.assert_array_equal(np.concatenate([call["latent_sample"] for call in calls]), latents / 0.5)
    assert [len(call["latent_sample"]) for call in calls] == [1, 1, 1]
    grey = np.rint((latents[:, :3].transpose(0, 2, 3, 1) / 0.5 / 2 + 0.5).clip(0, 1) * 255)  # [-1, 1] to 0..255
    np.testing.assert_array_equal(images, grey)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("component", "output", "words"),
    [
        ("text_encoder", "last_hidden_state", "the context is not finite"),
        ("unet", "out_sample", "latents are not finite after row 1"),
        ("vae_decoder", "sample", "the image is not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, on the way to the error
def test_what_is_not_finite_is_named(pipeline: Pipeline, component: str, output: str, words: str, bad: float) -> None:
    engine = pipeline.engines[component]
    answer = engine.answer

    def lie(arrays: dict[str, Array]) -> dict[str, Array]:
        out = answer(arrays)[output].copy()
        if component != "unet" or len(engine.calls) == 2:
            out.flat[-1] = bad
        return {output: out}

    engine.answer = lie
    with pytest.raises(LdmrtError, match=words) as raised:
        pipeline("a cat", num_inference_steps=4)
    assert raised.value.where == component


def test_close_closes_every_engine(pipeline: Pipeline) -> None:
    engines = list(pipeline.engines.values())
    pipeline.close()
    assert [engine.closed for engine in engines] == [True] * 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "no input x; expected x float32(batch, 4); found nothing"),
        ({"y": np.zeros(3)}, "no input x; expected x float32(batch, 4); found y"),
        ({"x": np.zeros(4)}, "wrong shape of x; expected x float32(batch, 4); found (4,)"),
        ({"x": np.zeros((2, 5))}, "wrong shape of x"),
    ],
)
def test_engine_refuses_what_does_not_fit(arrays: dict[str, Array], words: str) -> None:
    with pytest.raises(LdmrtError) as raised:
        conform("unet", (TensorSpec("x", "float32", ("batch", 4)),), arrays)
    assert str(raised.value).startswith(f"unet: {words}")


def test_engine_gets_the_dtypes_it_declares() -> None:
    given = {"x": np.zeros((2, 8), np.float64)[:, ::2], "surplus": np.zeros(1)}
    ready = conform("unet", (TensorSpec("x", "float32", ("batch", 4)),), given)
    assert list(ready) == ["x"]
    assert ready["x"].dtype == np.float32
    assert ready["x"].flags.c_contiguous


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        ({"sample": ("batch", 4, 8, 8), "timestep": ("batch",)}, "sample, timestep"),
        ({"time_ids": ("batch", "numbers")}, r"time_ids \('batch', 'numbers'\)"),
        ({"time_ids": ()}, r"time_ids \(\)"),
        ({}, ""),
    ],
)
def test_a_unet_without_its_inputs_is_refused(inputs: dict[str, tuple[int | str, ...]], found: str) -> None:
    unet = Fake(None)
    unet.inputs = tuple(TensorSpec(name, "float32", shape) for name, shape in inputs.items())
    stage, given = plain(4, 2, 0.5, 16), GivenImages((16, 16))
    context = Context(
        Request("a cat"), stage, stage.guide.rows, given, LazyEngines.of({"unet": unet}), {}, noise=CountedNoise([0])
    )
    with pytest.raises(BundleError, match=f"unet: no input time_ids of a fixed width; found {found}"):
        context.width("time_ids")
