"""A request is checked once, when it is made."""

from typing import Any

import numpy as np
import pytest

from ldmrt.runtime import LdmrtError, Request


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"count": 0}, "impossible count; expected at least 1; found 0"),
        ({"count": -2}, "impossible count"),
        ({"steps": 0}, "impossible number of steps; expected at least 1; found 0"),
        ({"steps": -20}, "impossible number of steps"),
        ({"guidance": np.nan}, "impossible guidance"),
        ({"guidance": np.inf}, "impossible guidance"),
        ({"prompt": []}, "no prompt"),
        ({"negative_prompt": ["a", "b"]}, "as many negative prompts as pictures; expected 1; found 2"),
        ({"negative_prompt": []}, "as many negative prompts as pictures; expected 1; found 0"),
        ({"seed": [1, 2]}, "one seed a picture; expected 1; found 2"),
        ({"prompt": ["a", "b"], "count": 2, "seed": [1, 2]}, "one seed a picture; expected 4; found 2"),
        *(
            pytest.param(fields, name, id=f"wrong {fields}")
            for name, fields in (
                ("prompt", {"prompt": None}),
                ("prompt", {"prompt": [b"a"]}),
                ("negative", {"negative_prompt": 3}),
                ("count", {"count": 1.5}),
                ("steps", {"steps": 2.5}),
                ("guidance", {"guidance": "5"}),
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
    assert (request.prompts, request.negative_texts(zeros=False), request.seeds) == (["a cat"], [("", "")], [0])


def test_each_picture_has_its_prompt_and_seed() -> None:
    request = Request(("cat", "dog"), count=2, seed=5, negative_prompt=["dog", "cat"])
    assert request.prompts == ["cat", "cat", "dog", "dog"]
    assert request.negative_texts(zeros=True) == [(text, text) for text in ("dog", "dog", "cat", "cat")]
    assert request.seeds == [5, 6, 7, 8]


def test_one_negative_prompt_is_for_all() -> None:
    assert (
        Request(["cat", "dog"], negative_prompt="blurred").negative_texts(zeros=False) == [("blurred", "blurred")] * 2
    )


def test_second_prompt_is_the_first_where_it_is_left_out() -> None:
    assert Request(["cat", "dog"]).texts == [("cat", "cat"), ("dog", "dog")]
    assert Request(["cat", "dog"], prompt_2="ink").texts == [("cat", "ink"), ("dog", "ink")]
    second = Request("cat", negative_prompt="red", negative_prompt_2="blue")
    assert second.negative_texts(zeros=True) == [("red", "blue")]


def test_no_negative_prompt_may_mean_no_words_at_all() -> None:
    assert Request("cat").negative_texts(zeros=True) == [(None, None)]
    assert Request("cat", negative_prompt="").negative_texts(zeros=True) == [("", "")]


def test_seeds_are_whole_numbers_whatever_counts_them() -> None:
    assert Request("cat", count=3, seed=np.array([3, 1, 4])).seeds == [3, 1, 4]
    assert [type(seed) for seed in Request("cat", count=2, seed=np.int64(3)).seeds] == [int, int]


@pytest.mark.parametrize(
    ("size", "expected"),
    [({}, (64, 48)), ({"width": 32}, (64, 32)), ({"height": 128}, (128, 48)), ({"width": 8, "height": 24}, (24, 8))],
)
def test_size_in_pixels(size: dict[str, int], expected: tuple[int, int]) -> None:
    assert Request("cat", **size).size((64, 48), 8) == expected


@pytest.mark.parametrize("pixels", [-8, 0, 4, 9, 63])
@pytest.mark.parametrize("side", ["width", "height"])
def test_impossible_size_is_refused(side: str, pixels: int) -> None:
    with pytest.raises(LdmrtError, match=f"impossible {side}; expected a multiple of 8; found {pixels}"):
        Request("cat", **{side: pixels}).size((64, 64), 8)


def test_request_is_a_value() -> None:
    request = Request("cat", seed=3)
    assert request == Request("cat", seed=3)
    with pytest.raises(AttributeError):
        request.steps = 3  # type: ignore[misc]
