"""A prompt is encoded once, by itself, and forgotten when there is no more room."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import ldmrt.runtime
from ldmrt.runtime.backends.wrappers.text_encoder_cache import CachedTextEncoder
from ldmrt.runtime.tensors import TensorSpec


class Noting:
    """An engine that notes which texts it was given."""

    inputs = (TensorSpec("input_ids", "int64", ("batch", 3)),)
    outputs = (TensorSpec("state", "float32", ("batch", 3, 2)),)

    def __init__(self) -> None:
        self.seen: list[list[list[int]]] = []

    def __call__(self, **arrays: NDArray) -> dict[str, NDArray]:
        ids = arrays["input_ids"]
        self.seen.append(ids.tolist())
        return {"state": np.stack([ids, -ids], axis=-1).astype(np.float32)}

    def close(self) -> None:
        self.seen.clear()


A, B, C = np.arange(9, dtype=np.int64).reshape(3, 3)


def test_a_text_is_encoded_once_and_alone() -> None:
    engine = Noting()
    memo = CachedTextEncoder(engine)
    for texts in ([A, B], [B, A, A], [C, A]):
        np.testing.assert_array_equal(
            memo(input_ids=np.stack(texts))["state"], Noting()(input_ids=np.stack(texts))["state"]
        )
    assert engine.seen == [[A.tolist()], [B.tolist()], [C.tolist()]]


def test_the_text_that_was_not_asked_for_longest_is_forgotten_first() -> None:
    engine = Noting()
    memo = CachedTextEncoder(engine, budget=2 * 3 * 2 * 4)  # of two texts
    for texts in ([A, B], [A], [C], [A], [B]):
        memo(input_ids=np.stack(texts))
    assert engine.seen == [[A.tolist()], [B.tolist()], [C.tolist()], [B.tolist()]]


def test_what_a_caller_does_to_an_output_is_not_remembered() -> None:
    memo = CachedTextEncoder(Noting())
    memo(input_ids=A[None])["state"][...] = 7
    np.testing.assert_array_equal(memo(input_ids=A[None])["state"], Noting()(input_ids=A[None])["state"])


def test_one_larger_than_the_budget_and_closing() -> None:
    engine = Noting()
    memo = CachedTextEncoder(engine, budget=1)
    memo(input_ids=A[None])
    memo(input_ids=A[None])
    assert len(engine.seen) == 1
    memo.close()
    memo(input_ids=A[None])
    assert len(engine.seen) == 1  # emptied by close, and asked once more


def test_pictures_of_a_prompt_do_not_depend_on_those_before(bundle: Path) -> None:
    asked = {"num_inference_steps": 2, "guidance_scale": 3.0, "seed": 5}
    fresh = ldmrt.runtime.open(bundle)("a red apple", **asked)
    warm = ldmrt.runtime.open(bundle)
    warm("a blue bird", negative_prompt="a red apple", num_inference_steps=1)
    np.testing.assert_array_equal(warm("a red apple", **asked).latents, fresh.latents)
