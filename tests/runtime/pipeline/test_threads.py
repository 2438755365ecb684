"""Many threads share a pipeline and are switched as often as can be: each image is the one its request gives alone."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import ldmrt.runtime
from ldmrt.runtime import LdmrtError, Request
from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.backends.low_memory import in_low_memory
from ldmrt.runtime.backends.wrappers.text_encoder_cache import CachedTextEncoder
from ldmrt.runtime.tensors import TensorSpec

THREADS = 8


@pytest.fixture(autouse=True)
def switching() -> Iterator[None]:
    """Threads take turns after a microsecond."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(work: Callable[[int], Any], many: int) -> list[Any]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, range(many)))


class Counted:
    """An engine that must be open while it is called; `live` are those that are."""

    inputs = (TensorSpec("x", "float32", (1,)),)
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self, name: str, live: list[str]) -> None:
        self._name, self._live, self._open = name, live, True
        live.append(name)

    def __call__(self, **arrays: NDArray) -> dict[str, NDArray]:
        for _ in range(20):
            assert self._open
        return {"name": np.array(self._name)}

    def close(self) -> None:
        self._open = False
        self._live.remove(self._name)


def test_turns_of_many_threads() -> None:
    live: list[str] = []
    names = ("text_encoder", "unet", "controlnet_a", "vae_decoder")
    specs = dict.fromkeys(names, (Counted.inputs, Counted.outputs))
    makers = in_low_memory({name: lambda name=name: Counted(name, live) for name in names}, specs)
    engines = LazyEngines(makers, take_turns=True)

    def work(number: int) -> bool:
        name = names[number % len(names)]
        return str(engines[name](x=np.zeros(1))["name"]) == name

    assert all(at_once(work, 400))
    assert len({"unet" if name.startswith(("unet", "controlnet")) else name for name in live}) == 1
    engines.close()
    assert live == []
    with pytest.raises(LdmrtError, match="closed"):
        engines["unet"]


def test_an_engine_that_cannot_be_opened_is_told_of_to_everybody() -> None:
    made: list[int] = []

    def broken() -> Any:
        made.append(1)
        raise LdmrtError("a", "broken")

    engines = LazyEngines({"a": broken, "b": lambda: Counted("b", [])})

    def work(_: int) -> str:
        engines.open_soon(["a"])
        try:
            engines["a"]
        except LdmrtError as error:
            return error.problem
        return ""

    assert set(at_once(work, 300)) == {"broken"}
    assert len(set(map(id, at_once(lambda _: engines["b"], 100)))) == 1


class Ids:
    """A text encoder that counts its calls."""

    inputs = (TensorSpec("input_ids", "int64", ("batch", 3)),)
    outputs = (TensorSpec("state", "float32", ("batch", 3)),)

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, **arrays: NDArray) -> dict[str, NDArray]:
        self.calls += 1
        return {"state": arrays["input_ids"].astype(np.float32)}

    def close(self) -> None:
        pass


def test_a_prompt_is_encoded_and_counted_once() -> None:
    engine = Ids()
    memo = CachedTextEncoder(engine, budget=5 * 12)  # bytes of five prompts
    texts = np.arange(9, dtype=np.int64).reshape(3, 3)
    made = at_once(lambda n: memo(input_ids=texts[[n % 3]])["state"], 300)
    assert engine.calls == 3
    for n, state in enumerate(made):
        np.testing.assert_array_equal(state, texts[[n % 3]])


REQUESTS = [
    Request(
        ["a penguin", "two pears", "a cat"][n % 3],
        num_inference_steps=2,
        seed=n,
        scheduler=["ddim", "euler_a"][n % 2],
        guidance_scale=[4.0, 1.0][n // 4 % 2],
    )
    for n in range(9)
]


@pytest.mark.parametrize(
    "how",
    [{}, pytest.param({"low_memory": True}, marks=pytest.mark.slow), {"fused": True}],
    ids=["plain", "low memory", "folded"],
)
def test_images_are_those_of_one_thread(bundle: Path, how: dict[str, Any]) -> None:
    """72 of 72, nine requests by eight threads."""
    with ldmrt.runtime.open(bundle, "onnxruntime", check=False, threads=1, **how) as pipeline:
        alone = [pipeline(request).pixels for request in REQUESTS]
    with ldmrt.runtime.open(bundle, "onnxruntime", check=False, threads=1, **how) as pipeline:
        together = at_once(lambda n: pipeline(REQUESTS[n % len(REQUESTS)]).pixels, THREADS * len(REQUESTS))
    assert len(together) == 72
    for n, images in enumerate(together):
        np.testing.assert_array_equal(images, alone[n % len(REQUESTS)])


def test_a_pipeline_is_closed_by_its_with_and_says_so(bundle: Path) -> None:
    with ldmrt.runtime.open(bundle, "onnxruntime", check=False) as pipeline:
        latents = pipeline("a cat", num_inference_steps=1).latents
        task = pipeline.prepare(Request("a cat", num_inference_steps=1))
    pipeline.close()  # once more
    pipeline.close()
    for use in (
        lambda: pipeline("a cat", num_inference_steps=1),
        lambda: next(pipeline.steps(Request("a cat", num_inference_steps=1))),
        lambda: list(pipeline.draw([Request("a cat", num_inference_steps=1)])),
        lambda: pipeline.decode(latents),
        task.last,
    ):
        with pytest.raises(LdmrtError, match="closed"):
            use()
    with pytest.raises(ZeroDivisionError), ldmrt.runtime.open(bundle, "onnxruntime", check=False) as other:
        raise ZeroDivisionError
    with pytest.raises(LdmrtError, match="closed"):
        other("a cat", num_inference_steps=1)
