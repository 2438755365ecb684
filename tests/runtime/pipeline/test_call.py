"""A pipeline is called with the arguments of diffusers' pipelines: all fields of a request, and no others."""

import inspect
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ldmrt.runtime
from ldmrt.runtime import InvalidRequest, LdmrtError, Pipeline, Request
from ldmrt.runtime.pipeline.call import ImagePipeline
from ldmrt.runtime.pipeline.refined import RefinedPipeline
from ldmrt.runtime.pipeline.request.field_names import FIELDS, from_short
from ldmrt.runtime.pipeline.request.fields import Fields

PROMPT = "two pears"
MAPPINGS = {
    "controls",
    "scheduler_settings",
    "stages",
}  # whose default in a call is None, which a request turns into {}


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Iterator[Pipeline]:
    with ldmrt.runtime.open(bundle, "onnxruntime", check=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def embeddings(pipeline: Pipeline) -> list[Any]:
    """Those of the prompt and of an empty one, (1, tokens, width) each."""
    ids = pipeline.tokenizers["tokenizer"]([PROMPT, ""])
    states = pipeline.engines["text_encoder"](input_ids=ids)["last_hidden_state"]
    return [states[:1], states[1:]]


def test_a_call_has_the_arguments_of_a_request() -> None:
    """Names, order, defaults and types, without `prompt`, which may be a request as well."""
    _, *parameters, unknown = inspect.signature(ImagePipeline.__call__).parameters.values()
    assert (unknown.kind, unknown.annotation) == (inspect.Parameter.VAR_KEYWORD, typing.NoReturn)
    assert [one.name for one in parameters] == [one.name for one in fields(Request)] == list(FIELDS)
    own = Fields.__annotations__
    for parameter, field in zip(parameters, fields(Request), strict=True):
        name = parameter.name
        assert parameter.default == (None if field.default is MISSING else field.default), name
        expected = Request | own[name] if name == "prompt" else own[name]
        expected = expected | None if name in MAPPINGS else expected
        assert parameter.annotation == expected, name


@pytest.mark.parametrize("kind", [Pipeline, RefinedPipeline])
def test_every_pipeline_is_called_alike(kind: type) -> None:
    assert kind.__call__ is ImagePipeline.__call__


def test_short_words_are_other_words() -> None:
    assert from_short({"steps": 3, "guidance": 2.0, "seed": 1, "other": 0}) == {
        "num_inference_steps": 3, "guidance_scale": 2.0, "seed": 1, "other": 0,
    }  # fmt: skip
    words = [field.short or name for name, field in FIELDS.items()]
    assert len(set(words)) == len(words)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("steps", "unknown argument 'steps', did you mean 'num_inference_steps'?"),
        ("num_inference_step", "did you mean 'num_inference_steps'?"),
        ("guidance", "did you mean 'guidance_scale'?"),
        ("mask", "did you mean 'mask_image'?"),
        ("negative_prompt_embed", "did you mean 'negative_prompt_embeds'?"),
        ("control_image", "unknown argument 'control_image'\n  try: controls={NAME: image}"),
        ("cross_attention_kwargs", "try: loras={NAME: weight}, after load_lora"),
        ("max_sequence_length", "try: ldmrt export CHECKPOINT BUNDLE --max-sequence-length N, as its graph is for"),
        ("zzz", "unknown argument 'zzz'; expected prompt, negative_prompt"),
    ],
)
def test_an_unknown_argument_is_answered_with_the_nearest(name: str, message: str, pipeline: Pipeline) -> None:
    call: Any = pipeline
    with pytest.raises(InvalidRequest) as raised:
        call(PROMPT, **{name: 3})
    assert message in str(raised.value)


@pytest.mark.parametrize("output_type", ["pil", "np", "latent"])
def test_images_have_the_form_that_is_asked_for(output_type: Any, pipeline: Pipeline) -> None:
    asked: dict[str, Any] = {"num_inference_steps": 2, "num_images_per_prompt": 2, "seed": 3}
    result, plain = pipeline(PROMPT, **asked, output_type=output_type), pipeline(PROMPT, **asked)
    np.testing.assert_array_equal(result.latents, plain.latents)
    if output_type == "latent":
        np.testing.assert_array_equal(result.images, plain.latents)
        with pytest.raises(LdmrtError, match="the latents are not decoded"):
            _ = result.pixels
        return
    np.testing.assert_array_equal(result.pixels, plain.pixels)
    assert result.pixels.shape == (2, 16, 16, 3)
    if output_type == "np":
        assert (result.images.shape, result.images.dtype) == ((2, 16, 16, 3), np.float32)
        # what is rounded to 256 levels is half a level off at most; a float32 of 1 rounds by 6e-8
        assert 0 < np.abs(result.images - plain.pixels / 255).max() <= 0.5 / 255 + 1e-7
    else:
        assert [(image.mode, image.size) for image in result.images] == [("RGB", (16, 16))] * 2


@pytest.mark.parametrize("output_type", ["pil", "np", "latent"])
def test_parts_have_that_form_too(output_type: Any, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"num_inference_steps": 1, "num_images_per_prompt": 3, "output_type": output_type}
    whole = pipeline(PROMPT, **asked)
    monkeypatch.setattr("ldmrt.runtime.pipeline.batch_size.PIXELS", 2 * 16 * 16)
    parts = pipeline(PROMPT, **asked)
    assert type(parts.images) is type(whole.images)
    assert (len(parts.images), parts.seeds) == (3, [0, 1, 2])
    assert np.abs(parts.latents - whole.latents).max() < 1e-4  # sums are ordered by the batch


def test_a_callback_sees_every_row_and_may_change_its_latents(pipeline: Pipeline) -> None:
    seen: list[tuple[Any, int, float, Any]] = []

    def look(*arguments: Any) -> Mapping[str, Any]:
        *others, given = arguments
        seen.append((*others, given["latents"]))
        return given

    asked: dict[str, Any] = {"num_inference_steps": 3, "seed": 3}
    plain, looked = pipeline(PROMPT, **asked), pipeline(PROMPT, **asked, callback_on_step_end=look)
    np.testing.assert_array_equal(looked.latents, plain.latents)
    assert [(one[0], one[1], one[2]) for one in seen] == [
        (pipeline, 0, 667.0),
        (pipeline, 1, 334.0),
        (pipeline, 2, 1.0),
    ]
    for state, one in zip(pipeline.steps(Request(PROMPT, **asked)), seen, strict=True):
        np.testing.assert_array_equal(one[3], state.x)

    def replace(_: Any, row: int, __: float, given: dict[str, Any]) -> dict[str, Any]:
        return {"latents": given["latents"] * 2} if row == 1 else {}

    def in_place(_: Any, row: int, __: float, given: dict[str, Any]) -> None:
        given["latents"] *= 2 if row == 1 else 1

    changed = [pipeline(PROMPT, **asked, callback_on_step_end=each).latents for each in (replace, in_place)]
    np.testing.assert_array_equal(*changed)
    assert np.abs(changed[0] - plain.latents).max() > 1e-2
    with pytest.raises(InvalidRequest, match=r"latents of another shape; expected \(1, 4, 8, 8\); found \(1, 4, 8\)"):
        pipeline(PROMPT, callback_on_step_end=lambda *_: {"latents": np.zeros((1, 4, 8))})


def test_embeddings_stand_for_prompts(pipeline: Pipeline, embeddings: list[Any]) -> None:
    prompt, empty = embeddings
    asked: dict[str, Any] = {"num_inference_steps": 2, "num_images_per_prompt": 2}
    expected = pipeline(PROMPT, **asked).latents
    for words in (
        {"prompt_embeds": prompt, "negative_prompt_embeds": empty},
        {"prompt_embeds": prompt},
        {"prompt_embeds": prompt.astype(np.float64), "negative_prompt": ""},
        {"prompt": PROMPT, "negative_prompt_embeds": empty},
    ):
        np.testing.assert_array_equal(pipeline(**words, **asked).latents, expected)
    other = pipeline(prompt_embeds=prompt, negative_prompt="blurred", **asked).latents
    np.testing.assert_array_equal(other, pipeline(PROMPT, negative_prompt="blurred", **asked).latents)
    plain = pipeline(prompt_embeds=prompt, guidance_scale=1.0, num_inference_steps=2).latents
    np.testing.assert_array_equal(plain, pipeline(PROMPT, guidance_scale=1.0, num_inference_steps=2).latents)


def test_no_text_encoder_is_opened_for_embeddings(bundle: Path, embeddings: list[Any]) -> None:
    with ldmrt.runtime.open(bundle, "onnxruntime", check=False) as opened:
        opened(prompt_embeds=embeddings[0], negative_prompt_embeds=embeddings[1], num_inference_steps=1)
        assert "text_encoder" not in opened.engines._opened
        opened(PROMPT, num_inference_steps=1)
        assert "text_encoder" in opened.engines._opened


def test_parts_keep_their_embeddings() -> None:
    arrays = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    pooled = np.arange(6, dtype=np.float32).reshape(3, 2)
    whole = Request(prompt_embeds=arrays, num_images_per_prompt=2, negative_prompt_embeds=arrays + 1,
                    pooled_prompt_embeds=pooled)  # fmt: skip
    assert whole.total_images == 6
    for name in ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds"):
        each = np.concatenate([part.embeddings(name) for part in whole.parts(4)])
        np.testing.assert_array_equal(each, whole.embeddings(name))


STATES = np.zeros((1, 77, 4), np.float32)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"prompt": []}, "no prompt; expected prompt, or prompt_embeds"),
        ({"prompt": "a", "prompt_embeds": STATES}, "prompt cannot be combined with prompt_embeds"),
        ({"prompt_2": "a", "prompt_embeds": STATES}, "prompt_2 cannot be combined with prompt_embeds"),
        (
            {"prompt": "a", "negative_prompt": "b", "negative_prompt_embeds": STATES},
            "negative_prompt cannot be combined",
        ),
        ({"prompt": "a", "pooled_prompt_embeds": STATES[0]}, "pooled_prompt_embeds without prompt_embeds"),
        (
            {"prompt": ["a", "b"], "negative_prompt_embeds": STATES},
            "wrong length of negative_prompt_embeds; expected 2",
        ),
        (
            {"prompt_embeds": STATES[0]},
            "wrong shape of prompt_embeds; expected (prompts, tokens, width); found (77, 4)",
        ),
        ({"prompt_embeds": "a"}, "invalid prompt_embeds; expected an array of numbers (prompts, tokens, width)"),
        ({"prompt_embeds": STATES, "negative_prompt_embeds": STATES[:, :7]}, "wrong shape of negative_prompt_embeds"),
        ({"prompt": "a", "generator": np.random.default_rng(0), "seed": 1}, "generator cannot be combined with seed"),
        ({"prompt": "a", "generator": 3}, "invalid generator; expected numpy.random.Generator"),
        ({"prompt": "a", "generator": [np.random.default_rng(0)] * 2}, "expected one, or one per image (1)"),
        ({"prompt": "a", "output_type": "pt"}, "invalid output_type"),
        ({"prompt": "a", "callback_on_step_end": 3}, "invalid callback_on_step_end; expected a function"),
    ],
)
def test_refused(words: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        Request(**words)
    assert message in str(raised.value)


class Torch:
    """torch.Generator, as far as a request asks for it."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def initial_seed(self) -> int:
        return self._seed


def test_generators_give_seeds() -> None:
    generator = np.random.default_rng(7)
    first, second = (Request("a", num_images_per_prompt=2, generator=generator).seeds for _ in range(2))
    assert first != second
    assert first == Request("a", num_images_per_prompt=2, generator=np.random.default_rng(7)).seeds
    assert (
        Request("a", generator=np.random.RandomState(3)).seeds == Request("a", generator=np.random.RandomState(3)).seeds
    )
    assert Request("a", num_images_per_prompt=2, generator=Torch(2**64 - 1)).seeds == [2**64 - 1, 0]
    assert Request(["a", "b"], generator=[Torch(5), Torch(9)]).seeds == [5, 9]


def test_a_generator_is_drawn_from_once() -> None:
    request = Request("a", num_images_per_prompt=3, generator=np.random.default_rng(7))
    assert [seed for part in request.parts(2) for seed in part.seeds] == request.seeds
