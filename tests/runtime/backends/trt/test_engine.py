"""The TensorRT backends over a GPU and a TensorRT of straw, which know what the real ones would not forgive."""

from typing import Any

import numpy as np
import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.backends.trt.engine import BOUND
from ldmrt.runtime.backends.trt.session import Session
from ldmrt.runtime.bundle.bundle import Bundle

from ....support.fakes.cuda import FakeCuda
from ....support.fakes.tensorrt import SCRATCH
from ..conftest import COMPONENTS, GPU, arrays, computed, engine, put, ranges, same, shapes


def test_calls(opened: Bundle, backend: str, gpu: FakeCuda) -> None:
    """The first runs, the second is recorded, the others are replayed; each waits once and all are right."""
    put(opened, backend)
    made = engine(opened, backend)
    for call in range(5):
        gpu.did.clear()
        given = arrays(2, seed=call)
        same(made(**given), computed(given))
        assert gpu.did["cudaEventSynchronize"] == 1
        assert gpu.did["ran"] == 1
        assert gpu.did["cudaStreamBeginCapture"] == (call == 1)
        assert gpu.did["enqueued"] == (call < 2)
        assert gpu.did["cudaGraphLaunch"] == (call >= 1)
        assert gpu.did["cudaMalloc"] == (2 if call == 0 else 0)  # tensors, scratch
        assert gpu.did["deserialised"] == (call == 0)
    made.close()
    assert gpu.leftovers == []


def test_answers_are_the_callers_own(opened: Bundle, backend: str, gpu: FakeCuda) -> None:
    put(opened, backend)
    made = engine(opened, backend)
    first = made(**arrays(2, seed=1))
    made(**arrays(2, seed=2))
    same(first, computed(arrays(2, seed=1)))


def test_shapes_are_recorded_once_each(opened: Bundle, backend: str, gpu: FakeCuda) -> None:
    put(opened, backend, ranges(1, 4), ranges(1, 4, 16))
    made = engine(opened, backend)
    for repeat in range(4):
        for batch, side in ((1, 8), (3, 8), (2, 16)):
            given = arrays(batch, side, seed=repeat)
            same(made(**given), computed(given))
    # the larger scratch of batch 3 moved what batch 1 had been told, before batch 1 was recorded
    assert gpu.did["cudaStreamBeginCapture"] == 3
    assert gpu.did["deserialised"] == 1
    made.close()
    assert gpu.leftovers == []


def test_more_scratch_is_told_to_everybody(opened: Bundle, backend: str, gpu: FakeCuda) -> None:
    """A recorded graph works in the scratch memory of its time: it is recorded again when that moves."""
    put(opened, backend)
    made = engine(opened, backend)
    for _ in range(3):
        made(**arrays(1))
    made(**arrays(4))
    assert max(len(held) for held in gpu.device.values()) >= 4 * SCRATCH
    for seed in range(2):
        same(made(**arrays(1, seed=seed)), computed(arrays(1, seed=seed)))
    assert gpu.did["cudaStreamBeginCapture"] == 2
    made.close()
    assert gpu.leftovers == []


def test_components_share_stream_and_scratch(opened: Bundle, backend: str, gpu: FakeCuda) -> None:
    session = Session(backend)
    made = []
    for name in COMPONENTS:
        put(opened, backend, component=name)
        made.append(engine(opened, backend, name, session))
    for seed in range(3):
        for one in made:
            same(one(**arrays(2, seed=seed)), computed(arrays(2, seed=seed)))
    assert len(gpu.streams) == 1
    assert gpu.did["cudaMalloc"] == 3  # of each its tensors, and one scratch
    made[0].close()
    same(made[1](**arrays(2)), computed(arrays(2)))
    made[1].close()
    assert gpu.leftovers == []
    same(made[0](**arrays(2)), computed(arrays(2)))  # loads again
    made[0].close()
    assert gpu.leftovers == []


def test_feedback_stays_on_the_gpu(opened: Bundle, backend: str, gpu: FakeCuda) -> None:
    """Ten rows: what goes up goes up once, what comes down comes down once, and there is one wait."""
    put(opened, backend)
    made, given = engine(opened, backend), arrays(2)
    binding = made.bind(shapes(2), {"out_state": "state", "out_row": "row"})
    gpu.did.clear()
    binding.upload(**given)
    for _ in range(10):
        binding.launch()
    found = binding.download("out_state", "row")
    assert gpu.did["cudaEventSynchronize"] == 1
    assert (gpu.did["copy HostToDevice"], gpu.did["copy DeviceToHost"]) == (3, 2)
    assert (gpu.did["ran"], gpu.did["cudaGraphLaunch"], gpu.did["enqueued"]) == (10, 9, 2)
    expected = given
    for _ in range(10):
        answer = computed(expected)
        expected = {"state": answer["out_state"], "row": answer["out_row"], "context": given["context"]}
    same(found, {"out_state": expected["state"], "row": expected["row"]})


def test_an_input_is_not_written_over_before_it_was_read(opened: Bundle, backend: str, gpu: FakeCuda) -> None:
    put(opened, backend)
    binding = engine(opened, backend).bind(shapes(1), {"out_state": "state"})
    given = arrays(1)
    binding.upload(**given)
    state = given["state"]
    for row in range(4):
        binding.upload(row=np.array([row]))
        binding.launch()
        state = computed({**given, "state": state, "row": np.array([row])})["out_state"]
    same(binding.download("out_state"), {"out_state": state})


@pytest.mark.parametrize(
    ("feedback", "message"),
    [
        ({"out_state": "row"}, "out_state cannot be fed back as row; expected an output and an input, of one dtype"),
        ({"state": "state"}, "state cannot be fed back as state"),
        ({"out_state": "out_state"}, "out_state cannot be fed back as out_state"),
        ({"nothing": "state"}, "nothing cannot be fed back as state"),
    ],
)
def test_feedback_that_does_not_fit(
    opened: Bundle, backend: str, gpu: FakeCuda, feedback: dict[str, str], message: str
) -> None:
    put(opened, backend)
    made = engine(opened, backend)
    with pytest.raises(LdmrtError, match=message):
        made.bind(shapes(2), feedback)
    made.close()
    assert gpu.leftovers == []


def test_uploads_and_downloads_that_do_not_fit(opened: Bundle, backend: str, gpu: FakeCuda) -> None:
    put(opened, backend)
    binding = engine(opened, backend).bind(shapes(2))
    with pytest.raises(LdmrtError, match=r"cannot upload row; expected .* row\(2,\).*; found \(3,\)"):
        binding.upload(row=np.zeros(3, np.int64))
    with pytest.raises(LdmrtError, match="cannot upload out_row"):
        binding.upload(out_row=np.zeros(2, np.int64))
    with pytest.raises(LdmrtError, match="no output x; found state, row, context, out_state, out_row"):
        binding.download("x")


def test_nothing_after_close(opened: Bundle, backend: str, gpu: FakeCuda) -> None:
    put(opened, backend)
    made = engine(opened, backend)
    binding = made.bind(shapes(2))
    made.close()
    binding.close()
    assert gpu.leftovers == []
    for use in (binding.launch, binding.download, lambda: binding.upload(**arrays(2))):
        with pytest.raises(LdmrtError, match="was closed"):
            use()


def test_only_the_latest_shapes_stay_ready(opened: Bundle, backend: str, gpu: FakeCuda) -> None:
    put(opened, backend, ranges(1, 2 * BOUND))
    made = engine(opened, backend)
    for batch in range(1, 2 * BOUND):
        same(made(**arrays(1)), computed(arrays(1)))
        same(made(**arrays(batch)), computed(arrays(batch)))
    assert len(gpu.host) == BOUND
    assert gpu.did["cudaHostAlloc"] == 2 * BOUND - 1  # batch 1 was asked for all the time and never had to come back
    made.close()
    assert gpu.leftovers == []


@pytest.mark.parametrize("changes", [{"uncapturable": True}, {"compiling": True}])
def test_what_cannot_be_recorded_is_launched(opened: Bundle, backend: str, gpu: FakeCuda, changes: Any) -> None:
    put(opened, backend, **changes)
    made = engine(opened, backend)
    for seed in range(4):
        same(made(**arrays(2, seed=seed)), computed(arrays(2, seed=seed)))
    tries = 1 if "uncapturable" in changes or backend == "tensorrt" else 0
    assert gpu.did["cudaStreamBeginCapture"] == tries
    made.close()
    assert gpu.leftovers == []


def test_kernels_are_kept(opened: Bundle, gpu: FakeCuda, backend: str) -> None:
    """TensorRT-RTX compiles for the GPU when it runs; the second process finds what the first has compiled."""
    folder = put(opened, backend)
    kept = folder / f"runtime-{GPU}.cache"
    for process in range(2):
        made = engine(opened, backend)
        made(**arrays(2))
        made.close()
        assert kept.is_file() == (backend == "tensorrt-rtx")
        assert gpu.did["compiled"] == (backend == "tensorrt-rtx"), process
    if kept.is_file():
        kept.write_bytes(b"of another driver")
        engine(opened, backend)(**arrays(2))
        assert kept.read_bytes() == b"kernels"
