"""Backend `auto` where engines are there and cannot run: it says why, and what it takes instead."""

import shutil
import warnings
from pathlib import Path

import pytest

import ldmrt.runtime
from ldmrt.runtime import LdmrtError, LdmrtWarning
from ldmrt.runtime.backends.trt import sessions
from ldmrt.runtime.bundle.engines.engine_key import Range, Recipe
from ldmrt.runtime.bundle.engines.store import FOLDER, write_engine


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def engine(bundle: Path, backend: str = "tensorrt-rtx", target: str = "sm89") -> Path:
    shape = Range((2, 4, 8, 8), (2, 4, 8, 8), (2, 4, 8, 8))
    recipe = Recipe("unet", "0", "0", "fp16", backend, "1.7", target, ({"sample": shape},))
    return write_engine(bundle / FOLDER, recipe, b"a plan", {}).folder


def told(bundle: Path, backend: str = "auto") -> list[str]:
    """What opening warns of, but for the certificate; and the pipeline draws."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pipeline = ldmrt.runtime.open(bundle, backend)
        assert pipeline("a cat", num_inference_steps=1).pixels.shape == (1, 16, 16, 3)
        pipeline.close()
    return [
        str(one.message) for one in seen if issubclass(one.category, LdmrtWarning) and "backend" in str(one.message)
    ]


class NoSession:
    """Of a machine without a GPU."""

    def __init__(self, backend: str) -> None:
        raise LdmrtError("backend", "there is no NVIDIA driver here")


def test_no_gpu(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "Session", NoSession)
    assert told(copy) == []  # no engines, nothing to say
    engine(copy)
    one = "backend auto takes ONNX Runtime, as 1 engine cannot run here: there is no NVIDIA driver here"
    assert told(copy) == [one]
    engine(copy, "tensorrt", "sm90")
    (both,) = told(copy)
    assert "as 2 engines cannot run here" in both
    assert told(copy, "onnxruntime") == []  # as it was asked


def test_another_gpu(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        gpu = "sm120"

        def __init__(self, backend: str) -> None:
            assert backend == "tensorrt-rtx"

    monkeypatch.setattr(sessions, "Session", Session)
    engine(copy), engine(copy, target="sm86")
    (said,) = told(copy)
    assert said.endswith("TensorRT-RTX: they were built for sm86, sm89, and this GPU is sm120")


def test_damaged_engines(copy: Path) -> None:
    (engine(copy) / "engine.json").write_text("{")
    (said,) = told(copy)
    assert "as 1 engine cannot run here: engine unet-sm89-" in said
    assert said.endswith("cannot read its engine.json")
