"""Stages overlap, keep the order, tell what went wrong where it did, and stop when nobody wants more."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Event, get_ident
from typing import Any

import numpy as np
import pytest

import ldmrt.runtime
from ldmrt.runtime import LdmrtError, Request
from ldmrt.runtime.pipeline.overlap import in_stages, one_by_one

WAIT = 10  # seconds, for what takes none


def test_results_are_those_of_one_by_one() -> None:
    stages = [lambda n: n + 1, lambda n: n * 10, str]
    for many in (0, 1, 2, 3, 7):
        assert list(in_stages(range(many), stages)) == list(one_by_one(range(many), stages))


def test_two_items_are_at_work_at_the_same_time() -> None:
    """The first is in its second stage only while the second is in its first, or neither would go on."""
    both = Barrier(2)

    def first(n: int) -> int:
        if n == 1:
            both.wait(WAIT)
        return n

    def second(n: int) -> int:
        if n == 0:
            both.wait(WAIT)
        return n

    assert list(in_stages([0, 1], [first, second])) == [0, 1]


def test_a_stage_is_one_thread() -> None:
    seen: list[set[int]] = [set(), set()]

    def note(stage: int, n: int) -> int:
        seen[stage].add(get_ident())
        return n

    list(in_stages(range(9), [lambda n: note(0, n), lambda n: note(1, n)]))
    assert [len(one) for one in seen] == [1, 1]
    assert get_ident() not in seen[0] | seen[1]
    assert seen[0] != seen[1]


def test_it_reads_no_further_ahead_than_there_are_stages() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for n in range(100):
            taken.append(n)
            yield n

    made = in_stages(items(), [abs, abs, abs])
    assert [next(made) for _ in range(4)] == [0, 1, 2, 3]
    assert len(taken) == 4 + 2


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_what_goes_wrong_is_raised_in_its_place(bad: int) -> None:
    """And what was done before is there."""

    def fail(n: int) -> int:
        if n == 4:
            raise LdmrtError("test", "invalid number")
        return n

    stages: list[Any] = [abs, abs, abs]
    stages[bad] = fail
    made = in_stages(range(9), stages)
    assert [next(made) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(LdmrtError, match="invalid number"):
        next(made)


@pytest.mark.parametrize("done", [0, 1, 2, 5])
def test_what_is_done_is_given_before_the_items_error(done: int) -> None:
    """The caller's own iterator raises: what it gave before is not lost."""

    def items() -> Iterator[int]:
        yield from range(done)
        raise ValueError("of the caller")

    for made in (in_stages(items(), [abs, abs, abs]), one_by_one(items(), [abs, abs])):
        assert [next(made) for _ in range(done)] == list(range(done))
        with pytest.raises(ValueError, match="of the caller"):
            next(made)


def test_nothing_more_begins_when_nobody_wants_it() -> None:
    begun: list[int] = []
    made = in_stages(range(100), [lambda n: begun.append(n) or n, abs])
    assert next(made) == 0
    made.close()
    assert len(begun) <= 3


def test_what_is_at_work_is_told_to_stop() -> None:
    """Else it would be waited for, for a row that never ends."""
    stop = Event()

    def work(n: int) -> int:
        return n if n == 0 else int(not stop.wait(WAIT))

    made = in_stages(range(100), [abs, work], stop.set)
    assert next(made) == 0
    made.close()
    assert stop.is_set()


def test_rows_stop_when_nobody_wants_the_picture(bundle: Path) -> None:
    pipeline = ldmrt.runtime.open(bundle, "onnxruntime", check=False)
    task = pipeline.prepare(Request("a penguin", num_inference_steps=50))
    calls: list[float] = []

    def model(x: Any, t: float, into: Any = None) -> Any:
        calls.append(t)
        return task.model(x, t, into)

    replace(task, model=model).last(lambda: len(calls) < 3)
    assert len(calls) == 3
    pipeline.close()


@pytest.mark.parametrize("low_memory", [False, True])
def test_requests_are_drawn_as_one_by_one(bundle: Path, low_memory: bool) -> None:
    pipeline = ldmrt.runtime.open(bundle, "onnxruntime", check=False, low_memory=low_memory)
    picture = pipeline("two pears", num_inference_steps=2).pixels[0]
    many = [
        Request("a penguin", num_inference_steps=3, seed=1),
        Request(["a red apple", "two pears"], num_inference_steps=2, seed=5, scheduler="euler_a", guidance_scale=1.0),
        Request("a penguin", num_inference_steps=4, seed=2, image=picture, strength=0.5),
        Request("two pears", num_inference_steps=2, width=24),
    ]
    for found, request in zip(pipeline.draw(many), many, strict=True):
        alone = pipeline(request)
        np.testing.assert_array_equal(found.latents, alone.latents)
        np.testing.assert_array_equal(found.pixels, alone.pixels)
        assert found.seeds == alone.seeds
    pipeline.close()


def test_a_wrong_request_is_told_of(bundle: Path) -> None:
    pipeline = ldmrt.runtime.open(bundle, "onnxruntime", check=False)
    drawn = pipeline.draw(
        [Request("a penguin", num_inference_steps=1), Request("a penguin", num_inference_steps=1, width=13)]
    )
    assert next(drawn).pixels.shape == (1, 16, 16, 3)
    with pytest.raises(LdmrtError, match="invalid width"):
        next(drawn)
    pipeline.close()


def test_parts_of_a_request(bundle: Path) -> None:
    """Each picture keeps its words, its seed and its latents."""
    latents = np.random.default_rng(0).standard_normal((6, 4, 8, 8), np.float32)
    whole = Request(
        ["a", "b", "c"],
        num_images_per_prompt=2,
        seed=7,
        negative_prompt=["x", "y", "z"],
        prompt_2="two",
        latents=latents,
        num_inference_steps=3,
    )
    for batch in (1, 2, 4, 6, 9):
        parts = list(whole.parts(batch))
        assert [len(one.prompts) for one in parts] == [min(batch, 6 - at) for at in range(0, 6, batch)]
        for of in ("prompts", "seeds", "texts"):
            assert [one for part in parts for one in getattr(part, of)] == getattr(whole, of)
        negative = [one for part in parts for one in part.negative_texts(zeros=True)]
        assert negative == whole.negative_texts(zeros=True)
        np.testing.assert_array_equal(
            np.concatenate([part.latents for part in parts if part.latents is not None]), latents
        )
        assert {part.num_inference_steps for part in parts} == {3}
    with pytest.raises(LdmrtError, match="invalid batch; expected at least 1; found 0"):
        whole.parts(0)
