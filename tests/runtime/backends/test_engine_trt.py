"""The TensorRT backends over a GPU and a TensorRT of straw, which know what the real ones would not forgive."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.backends.trt.engine import BOUND, TrtEngine
from ldmrt.runtime.backends.trt.session import MODULES, Session
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.recipe import Range, Recipe
from ldmrt.runtime.bundle.engines.store import FOLDER, PLAN, model_digests, write_engine
from ldmrt.runtime.bundle.model_info import ModelInfo

from ...support.fakes import tensorrt
from ...support.fakes.cuda import FakeCuda, cudaError_t
from ...support.fakes.networks import Small
from ...support.fakes.tensorrt import SCRATCH, VERSION

GPU = "sm89"
COMPONENTS = ("unet", "controlnet_edges")
Arrays = dict[str, NDArray[Any]]
computed = Small().run


@pytest.fixture(params=["tensorrt-rtx", "tensorrt"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def gpu(backend: str, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    made = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings", type("bindings", (), {"runtime": made}))
    monkeypatch.setitem(sys.modules, MODULES[backend], tensorrt.library(made, backend))
    monkeypatch.setattr("ldmrt.runtime.backends.trt.session.compute_capability", lambda: GPU)
    return made


@pytest.fixture
def opened(tmp_path: Path) -> Bundle:
    """A bundle as the backends see one: files, and a manifest that names tensors."""
    axes = ["batch", 4, "height/8", "width/8"], ["batch", 3]
    inputs = [["state", "float32", axes[0]], ["row", "int64", ["batch"]], ["context", "float16", axes[1]]]
    outputs = [["out_state", "float32", axes[0]], ["out_row", "int64", ["batch"]]]
    for name in COMPONENTS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").write_bytes(name.encode())
    rows = {name: {"inputs": inputs, "outputs": outputs, "precision": "fp16"} for name in COMPONENTS}
    return Bundle(tmp_path, {"components": rows}, {}, ModelInfo(4, 8, 1.0, 64))


def ranges(least: int, most: int, side: int = 8, widest: int | None = None) -> dict[str, Range]:
    """Of batches and of sides."""
    low, high = shapes(least, side), shapes(most, widest or side)
    return {name: Range(low[name], low[name], high[name]) for name in low}


def shapes(batch: int, side: int = 8) -> dict[str, tuple[int, ...]]:
    return {"state": (batch, 4, side, side), "row": (batch,), "context": (batch, 3)}


def arrays(batch: int, side: int = 8, seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    return {
        "state": random.normal(size=(batch, 4, side, side)).astype(np.float32),
        "row": random.integers(0, 50, batch),
        "context": random.normal(size=(batch, 3)).astype(np.float16),
    }


def put(
    opened: Bundle, backend: str, *profile: dict[str, Range], component: str = "unet", version: str = VERSION,
    target: str = GPU, **changes: Any,
) -> Path:  # fmt: skip
    """Have an engine in the bundle; where it is."""
    profile = profile or (ranges(1, 4),)
    graph, weights = model_digests(opened, component)
    recipe = Recipe(component, graph, weights, "fp16", backend, version, target, profile)
    return write_engine(opened.path / FOLDER, recipe, tensorrt.plan(list(profile), **changes), {}).folder


def engine(opened: Bundle, backend: str, component: str = "unet", session: Session | None = None) -> TrtEngine:
    return TrtEngine(component, opened, session or Session(backend))


def same(found: Arrays, expected: Arrays) -> None:
    assert set(found) == set(expected)
    for name, one in expected.items():
        np.testing.assert_array_equal(found[name], one.astype(found[name].dtype), err_msg=name)


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
    "unknown shape": (having(dynamic="out_row"), "the shape of out_row hangs on data", "--backend onnxruntime"),
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
