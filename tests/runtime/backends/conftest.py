"""A bundle of small networks, and TensorRT and ONNX Runtime on a GPU that are stand-ins."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from ldmrt.runtime.backends.trt.engine import TrtEngine
from ldmrt.runtime.backends.trt.session import MODULES, Session
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.engine_key import Range, Recipe
from ldmrt.runtime.bundle.engines.store import FOLDER, model_digests, write_engine

from ...support.fakes import tensorrt
from ...support.fakes.cuda import FakeCuda
from ...support.fakes.cuda_provider import CUDA as PROVIDER
from ...support.fakes.cuda_provider import Recorder
from ...support.fakes.networks import Small
from ...support.fakes.stages import plain
from ...support.fakes.tensorrt import VERSION

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
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(ort, "get_available_providers", lambda: [PROVIDER])
    monkeypatch.setattr(ort, "InferenceSession", made.session)
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", made.value)
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
    return Bundle(tmp_path, {"components": rows}, {}, (plain(4, 8, 1.0, 64),))


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
