"""ONNX Runtime's bindings where a GPU records them, on a stand-in."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import ldmrt.runtime
from ldmrt.runtime import LdmrtError, LdmrtWarning, Request
from ldmrt.runtime.backends import by_sizes
from ldmrt.runtime.backends.ort import engine as engine_ort
from ldmrt.runtime.backends.ort.engine import OrtEngine
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.graphs import FEEDBACK, STEP

from ....support.fakes.cuda_provider import Recorder

PROMPT = "a red apple"

ASKED: list[dict[str, Any]] = [
    {"num_inference_steps": 4, "seed": 1},
    {"num_inference_steps": 4, "seed": 2, "guidance_scale": 3.0},  # in the first one's buffers
    {"num_inference_steps": 3, "seed": 3},
    {"num_inference_steps": 3, "seed": 3, "height": 16, "width": 24},
    {"num_inference_steps": 4, "seed": 1},
    {"num_inference_steps": 3, "seed": 4, "scheduler": "euler_a"},
]


@pytest.fixture(scope="module")
def expected(bundle: Path) -> list[Any]:
    """The same by the loop, on the CPU."""
    pipeline = ldmrt.runtime.open(bundle, "onnxruntime", check=False, fused=False)
    return [pipeline(PROMPT, **asked).latents for asked in ASKED]


def draw(bundle: Path) -> list[Any]:
    pipeline = ldmrt.runtime.open(bundle, "onnxruntime-cuda", check=False)
    return [pipeline(PROMPT, **asked).latents for asked in ASKED]


def compare(found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()  # float32 sums in another order, over all rows


def test_what_is_recorded_draws_the_loops_pictures(bundle: Path, recorder: Recorder, expected: list[Any]) -> None:
    compare(draw(bundle), expected)
    assert recorder.launches == [1, 2] * 4 + [1, 2, 1] * 2 + [1, 2] * 2 + [1, 2, 1]  # two buffers by turns
    assert recorder.opened == 3  # numbers of steps share a session; another size and a sampler that draws have theirs


def test_the_session_that_was_used_longest_ago_is_closed(
    bundle: Path, recorder: Recorder, expected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_sizes, "MOST", 1)
    compare(draw(bundle), expected)
    assert recorder.opened == 4  # the fifth request's was closed by the fourth


def test_many_requests_share_a_gpu(bundle: Path, recorder: Recorder, expected: list[Any]) -> None:
    pipeline = ldmrt.runtime.open(bundle, "onnxruntime-cuda", check=False)
    compare([one.latents for one in pipeline.draw(Request(PROMPT, **asked) for asked in ASKED)], expected)


def test_a_graph_that_cannot_be_recorded_still_runs(bundle: Path, recorder: Recorder, expected: list[Any]) -> None:
    recorder.refuses = True
    with pytest.warns(
        LdmrtWarning, match=r"^step.cuda.onnx is not recorded as a CUDA graph: This session cannot use the .*"
    ):
        compare(draw(bundle), expected)
    assert set(recorder.launches) == {-1}


def test_what_is_fed_back_comes_whole(bundle: Path) -> None:
    engine = OrtEngine(STEP, Bundle.open(bundle).model(STEP))
    sizes = {"batch": 1, "calls": 1, "saved": 1, "rows": 1, "terms": 3, "draws": 1}
    shapes = {
        spec.name: tuple(sizes.get(str(dim), 8) if isinstance(dim, str) else dim for dim in spec.shape)
        for spec in engine.inputs
    }
    with pytest.raises(LdmrtError, match="step: no input row; found state"):
        engine.bind(shapes, FEEDBACK).upload(state=np.zeros(shapes["state"]))
    with pytest.raises(LdmrtError, match="step: no input idx"):
        engine.bind({name: shape for name, shape in shapes.items() if name != "idx"}, FEEDBACK)


@pytest.mark.parametrize("large", [False, True])
def test_convolutions_of_large_networks_stay_as_they_are(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of blocks of channels would have weights arranged anew, gigabytes of them."""
    import onnx
    from onnx import helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((32, 32, 3, 3), np.float32)
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 32, 8, 8]) for name in ("x", "y")]
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)
    graph = helper.make_graph([node], "test", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    path, kept = tmp_path / "model.onnx", tmp_path / "kept.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11), path)
    monkeypatch.setattr(engine_ort, "LARGE", path.stat().st_size - large)
    monkeypatch.setattr(ort, "InferenceSession", _keeping(ort.InferenceSession, kept))
    OrtEngine("test", path)(x=np.zeros((1, 32, 8, 8), np.float32))
    assert ("com.microsoft.nchwc" in {one.domain for one in onnx.load(kept).graph.node}) == (not large)


def _keeping(opened: Any, kept: Path) -> Any:
    """What opens a session, and has it keep what it made of the graph."""

    def session(path: str, options: Any, providers: list[Any]) -> Any:
        options.optimized_model_filepath = str(kept)
        return opened(path, options, providers=providers)

    return session
