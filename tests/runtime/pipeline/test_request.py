"""A request is checked once, when it is made."""

import math
from dataclasses import fields
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldmrt.runtime import LdmrtError, Request
from ldmrt.runtime.pipeline.request.field_names import FIELDS


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_images_per_prompt": 0}, "invalid num_images_per_prompt; expected at least 1; found 0"),
        ({"num_images_per_prompt": -2}, "invalid num_images_per_prompt"),
        ({"num_inference_steps": 0}, "invalid num_inference_steps; expected at least 1; found 0"),
        ({"num_inference_steps": -20}, "invalid num_inference_steps"),
        ({"guidance_scale": np.nan}, "invalid guidance_scale"),
        ({"guidance_scale": np.inf}, "invalid guidance_scale"),
        ({"prompt": []}, "no prompt"),
        ({"negative_prompt": ["a", "b"]}, "wrong length of negative_prompt; expected 1 .one per prompt.; found 2"),
        ({"negative_prompt": []}, "wrong length of negative_prompt; expected 1 .one per prompt.; found 0"),
        ({"seed": [1, 2]}, "one seed per image; expected 1; found 2"),
        ({"prompt": ["a", "b"], "num_images_per_prompt": 2, "seed": [1, 2]}, "one seed per image; expected 4; found 2"),
        *(
            pytest.param(fields, name, id=f"wrong {fields}")
            for name, fields in (
                ("prompt", {"prompt": []}),
                ("prompt", {"prompt": [b"a"]}),
                ("negative", {"negative_prompt": 3}),
                ("num_images_per_prompt", {"num_images_per_prompt": 1.5}),
                ("num_inference_steps", {"num_inference_steps": 2.5}),
                ("guidance_scale", {"guidance_scale": "5"}),
                ("seed", {"seed": 1.5}),
                ("seed", {"seed": -1}),
                ("width", {"width": 64.0}),
            )
        ),
    ],
)
def test_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(LdmrtError, match=words) as raised:
        Request(**{"prompt": "a cat", **fields})
    assert raised.value.where == "request"


def test_one_prompt() -> None:
    request = Request("a cat")
    assert (request.prompts, request.negative_texts(zeros=False), request.seeds) == (["a cat"], [("", "", "")], [0])


def test_each_picture_has_its_prompt_and_seed() -> None:
    request = Request(("cat", "dog"), num_images_per_prompt=2, seed=5, negative_prompt=["dog", "cat"])
    assert request.prompts == ["cat", "cat", "dog", "dog"]
    assert request.negative_texts(zeros=True) == [(text,) * 3 for text in ("dog", "dog", "cat", "cat")]
    assert request.seeds == [5, 6, 7, 8]


def test_one_negative_prompt_is_for_all() -> None:
    assert Request(["cat", "dog"], negative_prompt="blurred").negative_texts(zeros=False) == [("blurred",) * 3] * 2


def test_other_prompts_are_the_first_where_they_are_left_out() -> None:
    assert Request(["cat", "dog"]).texts == [("cat",) * 3, ("dog",) * 3]
    assert Request(["cat", "dog"], prompt_2="ink").texts == [("cat", "ink", "cat"), ("dog", "ink", "dog")]
    assert Request("cat", prompt_3="ink").texts == [("cat", "cat", "ink")]
    second = Request("cat", negative_prompt="red", negative_prompt_2="blue")
    assert second.negative_texts(zeros=True) == [("red", "blue", "red")]


def test_no_negative_prompt_may_mean_no_words_at_all() -> None:
    assert Request("cat").negative_texts(zeros=True) == [(None, None, None)]
    assert Request("cat", negative_prompt="").negative_texts(zeros=True) == [("", "", "")]


def test_seeds_are_whole_numbers_whatever_counts_them() -> None:
    assert Request("cat", num_images_per_prompt=3, seed=np.array([3, 1, 4])).seeds == [3, 1, 4]
    assert [type(seed) for seed in Request("cat", num_images_per_prompt=2, seed=np.int64(3)).seeds] == [int, int]


@pytest.mark.parametrize(
    ("size", "expected"),
    [({}, (64, 48)), ({"width": 32}, (64, 32)), ({"height": 128}, (128, 48)), ({"width": 8, "height": 24}, (24, 8))],
)
def test_size_in_pixels(size: dict[str, int], expected: tuple[int, int]) -> None:
    assert Request("cat", **size).size((64, 48), 8) == expected


def test_a_model_that_names_an_absurd_size_is_refused() -> None:
    with pytest.raises(LdmrtError, match="invalid height; expected at most 32768; found 131072"):
        Request("x").size((131072, 131072), 2)


@pytest.mark.parametrize("pixels", [-8, 0, 4, 9, 63])
@pytest.mark.parametrize("side", ["width", "height"])
def test_impossible_size_is_refused(side: str, pixels: int) -> None:
    with pytest.raises(LdmrtError, match=f"invalid {side}; expected .*; found {pixels}"):
        Request("cat", **{side: pixels}).size((64, 64), 8)


def test_request_is_a_value() -> None:
    request = Request("cat", seed=3)
    assert request == Request("cat", seed=3)
    with pytest.raises(AttributeError):
        request.seed = 3  # type: ignore[misc]


class Hostile:
    """An object that can neither be printed nor counted nor made an array."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __len__(self) -> int:
        raise RuntimeError("no")

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no")


def nested() -> list[Any]:
    """A list that holds itself."""
    held: list[Any] = []
    held.append(held)
    return held


ODD: list[Any] = [
    None, True, False, np.True_, 0, -1, 2**64, 10**400, 10**5000, 1.5, -0.0, math.nan, math.inf, 1e308, 3 + 4j,
    Decimal("0.5"), Fraction(1, 3), np.int8(100), np.uint64(2**64 - 1), np.float16(0.5), np.float32(np.nan),
    np.array(3), np.array([1, 2]), np.array(["a"]), np.array([[1, 2]]), np.array([None, 1]), "", "5", "\ud800", "a\0b",
    b"a", bytearray(b"ab"), [], [1], [1, 2], (3, 1), [[1, 2], [3]], ["a", 1], {}, {"a": 1}, {1: 2}, {"a": ("x", "y")},
    {1, 2}, range(2), object(), Path("a"), len, Hostile(), nested(), (i for i in range(2)),
]  # fmt: skip


def test_every_field_has_a_check() -> None:
    assert list(FIELDS) == [one.name for one in fields(Request)]


@pytest.mark.parametrize("name", FIELDS)
def test_an_odd_value_is_kept_or_refused(name: str) -> None:
    """In one short line that names the field."""
    for value in ODD:
        found = made(name, value)
        if isinstance(found, LdmrtError):
            assert found.where in ("request", name, "control a")  # an image has a door of its own
            assert name.split("_")[0].rstrip("s") in f"{found.where} {found.problem}"
            assert len(str(found)) < 400
            assert "\n" not in str(found)
        elif name not in ("image", "mask_image"):
            kept = getattr(found, name)
            assert not isinstance(kept, (bool, np.generic, Fraction))


def made(name: str, value: Any) -> Request | LdmrtError:
    """A request with this field, or the error; any other exception is a failure."""
    try:
        return Request(**{"prompt": "a cat", name: value})
    except LdmrtError as error:
        return error


@pytest.mark.parametrize("name", ["aesthetic_score", "negative_aesthetic_score", "guidance_scale", "strength", "eta"])
@pytest.mark.parametrize("value", [True, np.True_, math.nan, np.float32(np.inf), "1", Decimal(1), None])
def test_only_finite_numbers_are_numbers(name: str, value: Any) -> None:
    if name in ("eta", "guidance_scale") and value is None:
        return
    with pytest.raises(LdmrtError, match=f"invalid {name}; expected .*; found "):
        Request("a cat", **{name: value})


def test_numbers_of_numpy_are_numbers() -> None:
    """And are kept as Python's, which do not overflow."""
    request = Request(
        ["a", "b"],
        num_images_per_prompt=np.int8(100),
        num_inference_steps=np.int64(4),
        guidance_scale=np.float32(2.5),
        width=np.int32(64),
        crops_coords_top_left=np.array([1, 2]),
        guidance_interval=(np.float16(0.5), 2),
        seed=np.uint64(7),
        strength=Fraction(1, 2),
    )
    assert request.total_images == 200
    assert request == Request(
        ["a", "b"],
        num_images_per_prompt=100,
        num_inference_steps=4,
        guidance_scale=2.5,
        width=64,
        crops_coords_top_left=(1, 2),
        guidance_interval=(0.5, 2.0),
        seed=7,
        strength=0.5,
    )


@pytest.mark.parametrize("name", ["prompt", "negative_prompt", "prompt_2", "negative_prompt_2"])
def test_half_a_character_is_no_text(name: str) -> None:
    for text in ("a \udcff cat", ["a", "\ud800"]):
        with pytest.raises(LdmrtError, match=f"invalid {name}; expected text of whole characters; found half"):
            Request(**{"prompt": ["a", "b"], name: text})


def test_a_long_value_is_not_printed_back() -> None:
    with pytest.raises(LdmrtError) as raised:
        Request("a cat", scheduler=b"x" * 10**6)  # type: ignore[arg-type]
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"seed": 2**64 - 2, "num_images_per_prompt": 3},
            "invalid seed; expected 0 to 2**64 - 1; found 18446744073709551616",
        ),
        ({"denoising_start": 0.5}, "denoising_start without latents"),
        (
            {"denoising_start": 0.5, "denoising_end": 0.5, "latents": np.zeros((1, 4, 2, 2))},
            "invalid denoising_start; expected below denoising_end, 0.5; found 0.5",
        ),
        (
            {"denoising_start": 0.5, "image": "in.png", "latents": np.zeros((1, 4, 2, 2))},
            "denoising_start cannot be combined with image",
        ),
        ({"controls": {"canny": ("in.png", "high")}}, "invalid scale of controls 'canny'; expected "),
        ({"controls": {"canny": ("in.png", 1, 2)}}, "invalid controls 'canny'; expected an image, or (image, scale)"),
    ],
)
def test_combinations_that_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(LdmrtError) as raised:
        Request("a cat", **fields)
    assert words in str(raised.value)


def test_a_request_of_any_size_is_parted_without_lists() -> None:
    request = Request(["a", "b"], num_images_per_prompt=10**9, seed=3, negative_prompt=["x", "y"])
    assert request.total_images == 2 * 10**9
    parts = request.parts(4)
    first = next(parts)
    assert (first.prompts, first.seeds, first.negative_prompt) == (["a"] * 4, [3, 4, 5, 6], ["x"] * 4)
