"""The runtime's TensorRT backend and the real library, as far as the two go where no GPU is."""

import enum
import importlib
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.backends.trt.engine import TrtEngine
from ldmrt.runtime.backends.trt.loaded_engine import LoadedPlan, validity_of
from ldmrt.runtime.backends.trt.session import Session, logger, must
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.engine_key import Range, Recipe
from ldmrt.runtime.bundle.engines.store import FOLDER, EngineFile, model_digests, write_engine

from ...support.fakes.cuda import FakeCuda
from ...support.fakes.tensorrt import CLASSES, ENUMS, RTX_ENUMS

trt = pytest.importorskip("tensorrt_rtx")
SHAPES = {"sample": (2, 4, 8, 8), "timestep": (2,), "encoder_hidden_states": (2, 16, 24)}
PROFILE = {name: Range(shape, shape, shape) for name, shape in SHAPES.items()}


def public(kind: type) -> set[str]:
    return {name for base in kind.__mro__[:-1] for name in vars(base) if not name.startswith("_")}


@pytest.mark.parametrize("name", CLASSES)
def test_the_stand_in_has_nothing_of_its_own(name: str) -> None:
    """What the tests of the backend call exists, by its very name, so that they prove something."""
    made_up = {"logger", "num_io_tensors"} if name == "Runtime" else set()
    real = set(dir(getattr(trt, name)))
    assert public(CLASSES[name]) - made_up - real == set()


@pytest.mark.parametrize("kind", [*ENUMS, *RTX_ENUMS], ids=lambda kind: kind.__name__)
def test_the_stand_ins_words_exist(kind: type[enum.Enum]) -> None:
    assert set(kind.__members__) <= set(getattr(trt, kind.__name__).__members__)


def test_the_stand_in_of_cuda_has_nothing_of_its_own() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    mine = {name for name in public(FakeCuda) if name.startswith("cuda")}
    assert mine - set(dir(runtime)) == set()
    for kind in (FakeCuda.cudaError_t, FakeCuda.cudaMemcpyKind, FakeCuda.cudaStreamCaptureMode):
        real = getattr(runtime, kind.__name__).__members__
        assert {name: int(value) for name, value in kind.__members__.items()}.items() <= {
            name: int(value) for name, value in real.items()
        }.items()


def test_what_the_source_calls_exists() -> None:
    """Names that the backend's files use of the library, found in their text."""
    folder = Path(importlib.import_module("ldmrt.runtime.backends.trt.session").__file__ or "").parent
    text = "".join((folder / name).read_text() for name in ("session.py", "loaded_engine.py", "cuda_graph.py"))
    known = {name for kind in CLASSES for name in dir(getattr(trt, kind))}
    called = set(re.findall(r"(?:context|engine|config|cache|runtime)\.([a-z]\w+)\(", text))
    assert len(called) > 15
    assert called - known - {"context"} == set()


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    """As if an sm89 were here; its driver is not."""
    monkeypatch.setattr("ldmrt.runtime.backends.trt.session.compute_capability", lambda: "sm89")
    return Session("tensorrt-rtx")


def no_gpu() -> bool:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    return runtime.cudaGetDeviceCount()[0] != runtime.cudaError_t.cudaSuccess


@pytest.fixture(scope="module")
def built(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle with a real engine of its U-Net, made without a GPU."""
    from ldmrt.export.engines.compiler import compile_engine

    opened = Bundle.open(Path(shutil.copytree(bundle, tmp_path_factory.mktemp("built") / "bundle")))
    graph, weights = model_digests(opened, "unet")
    flags = ("decomposable attentions",)
    made = Recipe("unet", graph, weights, "fp32", "tensorrt-rtx", trt.__version__, "sm89", (PROFILE,), flags)
    compiled = compile_engine(opened.model("unet"), made, lambda *_: True)
    assert compiled is not None
    write_engine(opened.path / FOLDER, made, compiled.plan, {})
    return opened


def test_a_real_engine_goes_as_far_as_the_driver(built: Bundle, session: Session) -> None:
    """Found, and its bytes checked; then CUDA says what is missing, in one line with a way out."""
    if not no_gpu():
        pytest.skip("this machine has a GPU")
    engine = TrtEngine("unet", built, session)
    assert engine.find(SHAPES).bucket(SHAPES) == 0
    with pytest.raises(LdmrtError, match=r"^cuda: cudaStreamCreateWithFlags failed; found cudaError\w+\n  try: ") as no:
        engine(**{name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()})
    assert "--backend onnxruntime" in str(no.value)
    engine.close()


def test_the_real_library_explains_what_it_refuses(session: Session) -> None:
    """Bytes that are no engine: it says so in its log, which is what the error shows."""
    verdict, why = validity_of(session, b"no engine" * 20)
    assert (verdict, why) == ("INVALID", "malformed engine")
    with pytest.raises(LdmrtError, match=r"unet: cannot be loaded; found .*(Serialization|[Cc]uda)") as refused:
        load_nonsense(session)
    assert len(str(refused.value).splitlines()) == 2


def load_nonsense(session: Session) -> Any:
    with session.explained("unet", "cannot be loaded"):
        return must(session.runtime.deserialize_cuda_engine(b"no engine" * 20), "deserialize_cuda_engine")


def test_the_real_library_takes_the_logger() -> None:
    log = logger(trt)
    log.log(trt.ILogger.INFO, "nothing")
    log.log(trt.ILogger.ERROR, " something ")
    assert log.errors == ["something"]
    assert trt.Runtime(log) is not None


def test_no_plan_is_read_for_a_gpu_that_is_none(built: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the pretence, the backend is refused when it is opened."""
    if not no_gpu():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(LoadedPlan, "__init__", lambda *_: pytest.fail("a plan was read"))
    monkeypatch.setattr(EngineFile, "read", lambda *_: pytest.fail("a plan was read"))
    from ldmrt.runtime import open as open_bundle

    with pytest.raises(LdmrtError, match=r"TensorRT-RTX needs a GPU: .*\n  try: --backend onnxruntime"):
        open_bundle(built.path, "tensorrt-rtx", check=False)
