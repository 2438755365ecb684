"""Which backend runs what: `auto` prefers engines that fit and falls back, a backend that was named does not."""

import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from ldmrt.runtime import LdmrtError, LdmrtWarning
from ldmrt.runtime import open as open_bundle
from ldmrt.runtime.backends.auto import AutoEngine
from ldmrt.runtime.backends.ort.engine import OrtEngine
from ldmrt.runtime.backends.registry import BACKENDS, BackendSettings, open_engines
from ldmrt.runtime.backends.trt.engine import TrtEngine
from ldmrt.runtime.backends.trt.sessions import sessions
from ldmrt.runtime.backends.wrappers.text_encoder_cache import CachedTextEncoder
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.engine_key import Range, Recipe
from ldmrt.runtime.bundle.engines.store import FOLDER, model_digests, write_engine
from ldmrt.runtime.bundle.graphs import STEP, UNET_HALVES
from ldmrt.runtime.tensors import TensorSpec

from ...support.fakes import tensorrt
from ...support.fakes.cuda import FakeCuda

SHAPES = {"sample": (2, 4, 8, 8), "timestep": (2,), "encoder_hidden_states": (2, 16, 24)}
PROFILE = {name: Range(shape, shape, shape) for name, shape in SHAPES.items()}
ARRAYS = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """An sm89 with TensorRT-RTX; TensorRT is not there."""
    made = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings", type("bindings", (), {"runtime": made}))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", tensorrt.library(made, "tensorrt-rtx"))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr("ldmrt.runtime.backends.trt.session.compute_capability", lambda: "sm89")
    return made


@pytest.fixture
def built(bundle: Path, tmp_path: Path) -> Bundle:
    """The tiny bundle, with something that stands for an engine of its U-Net."""
    opened = Bundle.open(Path(shutil.copytree(bundle, tmp_path / "bundle")))
    put(opened, "sm89")
    return opened


def put(opened: Bundle, target: str) -> None:
    graph, weights = model_digests(opened, "unet")
    made = Recipe("unet", graph, weights, "fp32", "tensorrt-rtx", tensorrt.VERSION, target, (PROFILE,))
    write_engine(opened.path / FOLDER, made, tensorrt.plan([PROFILE], broken=True), {})


def test_names() -> None:
    openvino = ["openvino", "openvino-gpu", "openvino-npu"]
    assert list(BACKENDS) == ["auto", "onnxruntime", "onnxruntime-cuda", *openvino, "tensorrt", "tensorrt-rtx"]


def test_a_name_that_is_none() -> None:
    with pytest.raises(LdmrtError, match=r"no backend 'cuda'.*; expected auto, onnxruntime, "):
        open_bundle("not/read/yet", "cuda")


def test_auto_without_engines_is_onnx_runtime(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And asks for neither driver nor library."""
    monkeypatch.setattr(
        "ldmrt.runtime.backends.trt.session.compute_capability", lambda: pytest.fail("the driver was asked")
    )
    engines = open_engines(Bundle.open(bundle), "auto")
    assert {type(engine) for engine in engines.values()} == {OrtEngine, CachedTextEncoder}
    engines.close()


@pytest.mark.parametrize("lacks", ["a GPU", "the library", "an engine for this GPU", "a manifest"])
def test_auto_where_engines_cannot_run(
    built: Bundle, gpu: FakeCuda, lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> str:
        raise LdmrtError("gpu", "none")

    if lacks == "a GPU":
        monkeypatch.setattr("ldmrt.runtime.backends.trt.session.compute_capability", refuse)
    elif lacks == "the library":
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    elif lacks == "an engine for this GPU":
        shutil.rmtree(built.path / FOLDER)
        put(built, "sm120")
    else:
        (built.path / "ldmrt.json").unlink()
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        engines = open_engines(Bundle.open(built.path), "auto")
    expected = [] if lacks == "a manifest" else ["backend auto takes ONNX Runtime, as 1 engine cannot run here"]
    assert [str(one.message).partition(":")[0] for one in shown] == expected
    assert {type(engine) for engine in engines.values()} == {OrtEngine, CachedTextEncoder}
    engines.close()


def test_auto_prefers_an_engine(built: Bundle, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime is not even opened where one fits."""
    monkeypatch.setattr(TrtEngine, "bind", lambda *_: None)
    monkeypatch.setattr(TrtEngine, "__call__", lambda self, **arrays: {"out_sample": arrays["sample"]})
    monkeypatch.setattr(OrtEngine, "__init__", lambda *_: pytest.fail("ONNX Runtime was opened"))
    engines = open_engines(built, "auto")
    assert [one.gpu for one in sessions(built)] == ["sm89"]
    np.testing.assert_array_equal(engines["unet"](**ARRAYS)["out_sample"], 1)


def test_auto_falls_back_and_says_so(built: Bundle, gpu: FakeCuda) -> None:
    """No such shape, then a plan that cannot be loaded: warned of once a set of shapes, and the numbers are right."""
    engine, ort = open_engines(built, "auto")["unet"], OrtEngine("unet", built.model("unet"))
    assert isinstance(engine, AutoEngine)
    larger = {**ARRAYS, "sample": np.ones((2, 4, 16, 16), np.float32)}
    with pytest.warns(
        LdmrtWarning, match=r"takes 2x4x8x8, not 2x4x16x16 as sample; it runs on ONNX .* next: ldmrt .*32x32"
    ):
        found = engine(**larger)
    np.testing.assert_array_equal(found["out_sample"], ort(**larger)["out_sample"])
    with pytest.warns(LdmrtWarning, match="cannot be loaded; it runs on ONNX Runtime"):
        found = engine(**ARRAYS)
    np.testing.assert_array_equal(found["out_sample"], ort(**ARRAYS)["out_sample"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine(**ARRAYS)
        engine(**larger)
    engine.close()
    assert gpu.leftovers == []


@pytest.mark.parametrize("backend", ["tensorrt-rtx", "tensorrt"])
def test_a_backend_that_was_named_does_not_fall_back(built: Bundle, gpu: FakeCuda, backend: str) -> None:
    if backend == "tensorrt":
        with pytest.raises(LdmrtError, match=r"TensorRT is not installed\n  try: pip install"):
            open_engines(built, backend)
        return
    pipeline = open_bundle(built.path, backend, check=False)
    with pytest.raises(
        LdmrtError, match=r"text_encoder: no engine for TensorRT-RTX 1\.2\.3 on sm89\n  try: ldmrt build"
    ):
        pipeline("a red apple", num_inference_steps=2)


def test_no_manifest_no_engine(built: Bundle, gpu: FakeCuda) -> None:
    (built.path / "ldmrt.json").unlink()
    engines = open_engines(Bundle.open(built.path), "tensorrt-rtx")
    with pytest.raises(LdmrtError, match=r"unet: .* has no manifest"):
        engines["unet"]


def test_shapes_in_symbols_come_from_the_manifest(built: Bundle, gpu: FakeCuda) -> None:
    inputs = open_engines(built, "tensorrt-rtx")["unet"].inputs
    assert inputs[0] == TensorSpec("sample", "float32", ("batch", 4, "height/2", "width/2"))


@pytest.mark.parametrize("backend", ["auto", "onnxruntime", "tensorrt-rtx"])
def test_a_bundle_without_a_fused_step_is_refused(built: Bundle, gpu: FakeCuda, backend: str) -> None:
    built.model(STEP).unlink()
    with pytest.raises(LdmrtError, match=r"unet: .* has no fused step\n  try: ldmrt export"):
        open_engines(built, backend, BackendSettings(fused=True))


@pytest.mark.usefixtures("gpu")
def test_unet_cut_in_two_is_left_out_beside_engines(built: Bundle) -> None:
    """On a CPU it would be slower than the engines."""
    unet = built.manifest["components"]["unet"]
    unet["graphs"] |= {name: {"inputs": [], "outputs": []} for name in UNET_HALVES}
    for name in UNET_HALVES:
        built.model(name).touch()
        built.manifest["files"][f"unet/{name}.onnx"] = {}
    assert set(UNET_HALVES) <= set(open_engines(built, "onnxruntime"))
    for backend in ("auto", "tensorrt-rtx"):
        engines = open_engines(built, backend)
        assert "unet" in engines
        assert not set(UNET_HALVES) & set(engines)


@pytest.mark.parametrize(
    ("backend", "fused", "there"),
    [("auto", None, False), ("auto", True, True), ("tensorrt-rtx", None, False), ("tensorrt-rtx", True, True)],
)
def test_the_fused_step_is_an_engine_where_engines_run(
    built: Bundle, gpu: FakeCuda, backend: str, fused: bool | None, there: bool
) -> None:
    """Without one it is asked for only where the user asks, and ONNX Runtime does not step in: the loop does."""
    engines = open_engines(built, backend, BackendSettings(fused=fused))
    assert (STEP in engines) == there
    if there:
        assert not isinstance(engines[STEP], OrtEngine)
        with pytest.raises(
            LdmrtError, match=r"step: no engine for .* on sm89\n  try: ldmrt build .* --folded --steps 50"
        ):
            engines[STEP].bind({}, {})  # type: ignore[attr-defined]
    engines.close()
