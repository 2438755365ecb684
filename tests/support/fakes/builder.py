"""TensorRT or TensorRT-RTX as if it were installed, on a GPU as if there were one: what `ldmrt build` and what comes
after it meet. Polygraphy is the real one up to where it would call TensorRT.
"""

import importlib
import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from ldmrt.runtime.backends.trt.session import MODULES

from . import tensorrt
from .cuda import FakeCuda
from .refitter import stored_weights

GPU = {"tensorrt": "sm90", "tensorrt-rtx": "sm89"}


def install(monkeypatch: pytest.MonkeyPatch, backend: str = "tensorrt") -> FakeCuda:
    """For one test."""
    gpu = FakeCuda(room=1 << 28)
    library = tensorrt.library(gpu, backend)
    library.Logger, library.IProgressMonitor = tensorrt.ILogger, tensorrt.ILogger
    library.HardwareCompatibilityLevel = SimpleNamespace(NONE="none", AMPERE_PLUS="ampere+")
    monkeypatch.setitem(sys.modules, "cuda.bindings", type("bindings", (), {"runtime": gpu}))
    library.ComputeCapability = SimpleNamespace(__members__=["SM89"])
    monkeypatch.setitem(sys.modules, MODULES[backend], library)
    monkeypatch.setattr("ldmrt.runtime.backends.trt.session.compute_capability", lambda: GPU[backend])
    monkeypatch.setattr("ldmrt.runtime.backends.gpu.compute_capability", lambda: GPU[backend])
    # It chooses its library once a process, when it is imported: other tests want the real one.
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "1")
    polygraphy, rtx = (importlib.import_module(f"polygraphy.backend.{name}") for name in ("trt", "tensorrt_rtx"))
    monkeypatch.setattr("polygraphy.config.USE_TENSORRT_RTX", backend != "tensorrt")
    monkeypatch.setattr(polygraphy, "network_from_onnx_path", lambda path, strongly_typed: path)
    monkeypatch.setattr(polygraphy, "set_decomposable_attentions", lambda network: network)
    monkeypatch.setattr(polygraphy, "CreateConfig", lambda **given: lambda builder, network: Config(given))
    monkeypatch.setattr(rtx, "CreateConfigRTX", lambda **given: lambda builder, network: Config(given))
    monkeypatch.setattr(polygraphy, "engine_bytes_from_network", _built)
    return gpu


class Config(dict[str, Any]):
    """A builder's configuration, with a cache of timings: a line for each engine that was built with it."""

    cache = None

    def create_timing_cache(self, blob: bytes) -> "Timings":
        return Timings(blob)

    def set_timing_cache(self, cache: "Timings", ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return all(line.startswith(b"timing") for line in cache.blob.splitlines())

    def get_timing_cache(self) -> "Timings":
        assert self.cache is not None
        return self.cache


class Timings:
    def __init__(self, blob: bytes) -> None:
        self.blob = blob

    def serialize(self) -> bytes:
        return self.blob


def _built(path: str, config: Any) -> bytes:
    made = config(None, None)
    if made.cache is not None:
        made.cache.blob += b"timing of " + path.encode() + b"\n"
    given = {name: made[name] for name in ("refittable", "weight_streaming")}
    return tensorrt.plan(made["profiles"], onnx=path, weights=stored_weights(path), **given)


def altered(plan: bytes, **changes: Any) -> bytes:
    """A plan that says something else."""
    return json.dumps({**json.loads(plan), **changes}).encode()
