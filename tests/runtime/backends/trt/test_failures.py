"""Failures of the TensorRT backends: one line each, and nothing left behind."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.store import PLAN

from ....support.fakes.cuda import FakeCuda, cudaError_t
from ..conftest import arrays, computed, engine, put, ranges, same


def missing(name: str) -> Any:
    return lambda opened, backend, patch: patch.setitem(sys.modules, name, None)


def no_driver(opened: Bundle, backend: str, patch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise LdmrtError("gpu", "there is no NVIDIA driver here")

    patch.setattr("ldmrt.runtime.backends.trt.session.compute_capability", refuse)


def spoiled(opened: Bundle, backend: str, patch: pytest.MonkeyPatch) -> None:
    plan = put(opened, backend) / PLAN
    plan.write_bytes(plan.read_bytes().replace(b"8", b"9"))


def having(**changes: Any) -> Any:
    return lambda opened, backend, patch: put(opened, backend, **changes)


BUILD = "ldmrt build .* --backend .* --target sm89 --sizes 64x64 --batch 1"


REFUSED: dict[str, tuple[Any, str, str]] = {
    "no driver": (no_driver, "needs a GPU: there is no NVIDIA driver here", "--backend onnxruntime"),
    "no bindings": (missing("cuda.bindings"), "cuda-bindings is not installed", "pip install 'ldmrt"),
    "no engine": (lambda *_: None, "no engine for TensorRT", BUILD),
    "another GPU": (having(target="sm120"), "was made for sm120, not for sm89", BUILD),
    "another version": (having(version="1.0"), "was made by TensorRT.* 1.0, not 1.2.3", BUILD),
    "no such shape": (having(), "takes 1-4x4x8x8, not 5x4x8x8", "--batch 5 --guidance off"),
    "spoiled": (spoiled, "engine.plan was changed", "ldmrt build"),
    "broken": (having(broken=True), "cannot be loaded; found the magic tag does not match", "--backend onnxruntime"),
    "fails": (having(fails=True), "could not run; found execute_async_v3 failed", "--backend onnxruntime"),
    "other dtype": (having(types={"state": "float16"}), "has another tensor; expected state float32", "ldmrt build"),
    "on the host": (having(host="row"), "wants a tensor on the host; found row int64", "--backend onnxruntime"),
    "unknown shape": (having(dynamic="out_row"), "the shape of out_row depends on data", "--backend onnxruntime"),
}


def call_and_close(opened: Bundle, backend: str, batch: int) -> None:
    made = engine(opened, backend)
    try:
        made(**arrays(batch))
    finally:
        made.close()


@pytest.mark.parametrize("case", REFUSED)
def test_refused(opened: Bundle, backend: str, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """One line that says it, one with the command that mends, and nothing is left on the GPU."""
    prepare, problem, hint = REFUSED[case]
    if case == "no bindings":
        put(opened, backend)
    prepare(opened, backend, monkeypatch)
    if case in ("another GPU", "another version", "no engine", "no such shape"):
        read = Path.read_bytes
        monkeypatch.setattr(
            Path, "read_bytes", lambda path: pytest.fail(f"{path} was read") if path.name == PLAN else read(path)
        )
    with pytest.raises(LdmrtError, match=problem) as refused:
        call_and_close(opened, backend, 5 if case == "no such shape" else 2)
    lines = str(refused.value).splitlines()
    assert len(lines) == 2
    assert re.search(hint, lines[1]), lines[1]
    assert gpu.leftovers == []


def test_tensorrt_rtx_says_what_does_not_run_here(opened: Bundle, gpu: FakeCuda, backend: str) -> None:
    """It is asked before the plan is deserialised; TensorRT has no such question."""
    put(opened, backend, foreign=True)
    made = engine(opened, backend)
    if backend == "tensorrt":
        same(made(**arrays(2)), computed(arrays(2)))
    else:
        with pytest.raises(LdmrtError, match="does not run on sm89; found unsupported cc"):
            made(**arrays(2))
        assert gpu.did["deserialised"] == 0
    made.close()
    assert gpu.leftovers == []


@pytest.mark.parametrize(
    ("call", "error", "hint"),
    [
        ("cudaStreamCreateWithFlags", cudaError_t.cudaErrorInsufficientDriver, "a newer NVIDIA driver"),
        ("cudaHostAlloc", cudaError_t.cudaErrorMemoryAllocation, "fewer images at once"),
        ("cudaEventSynchronize", cudaError_t.cudaErrorStreamCaptureInvalidated, None),
    ],
)
def test_cuda_fails(
    opened: Bundle, backend: str, gpu: FakeCuda, call: str, error: cudaError_t, hint: str | None
) -> None:
    put(opened, backend)
    made = engine(opened, backend)
    gpu.fails[call] = error
    with pytest.raises(LdmrtError, match=f"cuda: {call} failed; found {error.name}") as refused:
        made(**arrays(2))
    assert (refused.value.hint or "").startswith(hint or "")
    del gpu.fails[call]
    made.close()
    assert gpu.leftovers == []


def test_no_room(opened: Bundle, backend: str, gpu: FakeCuda) -> None:
    """What could be had is given back, and a smaller picture still runs."""
    put(opened, backend, ranges(1, 4, 8, 64))
    made = engine(opened, backend)
    same(made(**arrays(1)), computed(arrays(1)))
    gpu.room = 20_000
    with pytest.raises(LdmrtError, match="cudaMalloc failed; found cudaErrorMemoryAllocation"):
        made(**arrays(4, 64))
    same(made(**arrays(1)), computed(arrays(1)))
    made.close()
    assert gpu.leftovers == []
