"""TensorRT's Python API over `FakeCuda`. It has what the runtime uses and no more, and insists on the order that the
real one wants.
"""

import enum
import json
from types import SimpleNamespace
from typing import Any

import numpy as np

from .cuda import FakeCuda
from .networks import network, output_shape
from .refitter import ISerializationConfig, OnnxParserRefitter, Refitter, SerializationFlag, Weights

SCRATCH = 1000  # bytes for each row of the batch
VERSION = "1.2.3"


def plan(profile: list[dict[str, Any]], **changes: Any) -> bytes:
    """What `deserialize_cuda_engine` takes: the profile's ranges by input, least and most."""
    buckets = [{name: [list(one.min), list(one.max)] for name, one in bucket.items()} for bucket in profile]
    return json.dumps({"profile": buckets, "types": {}, **changes}).encode()


class TensorLocation(enum.IntEnum):
    DEVICE = 0
    HOST = 1


class TensorIOMode(enum.IntEnum):
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.IntEnum):
    STATIC = 0
    USER_MANAGED = 2


class CudaGraphStrategy(enum.IntEnum):
    DISABLED = 0


class DynamicShapesKernelSpecializationStrategy(enum.IntEnum):
    EAGER = 1


class EngineValidity(enum.IntEnum):
    VALID = 0
    INVALID = 2


class EngineInvalidityDiagnostics(enum.IntFlag):
    UNSUPPORTED_CC = 2


class ILogger:
    ERROR, INTERNAL_ERROR, INFO = 1, 0, 3

    def __init__(self) -> None:
        pass


class Runtime:
    _gpu: FakeCuda  # set by `library`

    def __init__(self, logger: ILogger) -> None:
        self.logger: Any = logger

    def deserialize_cuda_engine(self, data: bytes) -> "ICudaEngine | None":
        stored = json.loads(data)
        if stored.get("broken"):
            self.logger.log(ILogger.INFO, "loading")
            self.logger.log(ILogger.ERROR, "the magic tag does not match")
            return None
        return self._engine(stored)

    def _engine(self, stored: dict[str, Any]) -> "ICudaEngine":
        return ICudaEngine(self._gpu, stored)


class IRuntimeCache:
    def __init__(self) -> None:
        self._kernels = b""

    def serialize(self) -> bytes:
        return self._kernels

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(b"kernels"):
            return False
        self._kernels = blob
        return True


class IRuntimeConfig:
    cuda_graph_strategy: Any = None
    dynamic_shapes_kernel_specialization_strategy: Any = None

    def __init__(self) -> None:
        self._strategy, self._cache = ExecutionContextAllocationStrategy.STATIC, IRuntimeCache()

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True


class ICudaEngine:
    def __init__(self, gpu: FakeCuda, stored: dict[str, Any]) -> None:
        self._gpu, self._stored = gpu, stored
        self._net = self._network()
        self._tensors = {spec.name: spec for spec in (*self._net.inputs, *self._net.outputs)}
        self.num_io_tensors = len(self._tensors)
        self.refittable = bool(stored.get("refittable"))
        weights = stored.get("weights", {}).values() if stored.get("weight_streaming") else ()
        self.streamable_weights_size = sum(len(data) * 3 // 4 for _, _, data in weights)  # of base64
        self.weight_streaming_budget_v2 = self.streamable_weights_size
        gpu.did["deserialised"] += 1

    def _network(self) -> Any:
        return network(self._stored)

    def create_serialization_config(self) -> ISerializationConfig:
        return ISerializationConfig()

    def serialize_with_config(self, config: ISerializationConfig) -> bytes:
        """An engine that was refitted is like one whose weights were stripped: no longer refittable unless asked."""
        stays = self.refittable and SerializationFlag.INCLUDE_REFIT in config._flags
        return json.dumps({**self._stored, "refittable": stays}).encode()

    def get_tensor_name(self, number: int) -> str:
        return list(self._tensors)[number]

    def get_tensor_dtype(self, name: str) -> str:
        return str(self._stored["types"].get(name, self._tensors[name].dtype))

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if self._stored.get("host") == name else TensorLocation.DEVICE

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if self._tensors[name] in self._net.inputs else TensorIOMode.OUTPUT

    def create_execution_context(self, how: Any) -> "IExecutionContext":
        assert how == ExecutionContextAllocationStrategy.USER_MANAGED
        self._gpu.did["bytes on the GPU"] = self.weight_streaming_budget_v2
        return IExecutionContext(self._gpu, self._stored, self._net)


class RtxEngine(ICudaEngine):
    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, how: Any) -> "IExecutionContext":
        assert how._strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        assert how.cuda_graph_strategy == CudaGraphStrategy.DISABLED
        self._gpu.did["compiled"] += not how._cache._kernels
        how._cache._kernels = b"kernels"
        return RtxContext(self._gpu, self._stored, self._net)


class IExecutionContext:
    def __init__(self, gpu: FakeCuda, stored: dict[str, Any], net: Any) -> None:
        self._gpu, self._stored, self._net = gpu, stored, net
        self._tensors = {spec.name: spec for spec in (*net.inputs, *net.outputs)}
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, int] = {}
        self._memory = (0, 0)

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        assert stream in self._gpu.streams
        self._profile = number
        return 0 <= number < len(self._stored["profile"])

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile is not None, "no profile yet"
        least, most = self._stored["profile"][self._profile][name]
        self._shapes[name] = shape
        return len(shape) == len(least) and all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))

    def infer_shapes(self) -> list[str]:
        return [spec.name for spec in self._net.inputs if spec.name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if self._stored.get("dynamic") == name:
            return (-1,)
        return self._shapes.get(name) or output_shape(self._tensors[name], self._net.inputs, self._shapes)

    def update_device_memory_size_for_shapes(self) -> int:
        assert not self.infer_shapes()
        return SCRATCH * next(iter(self._shapes.values()))[0]

    def set_device_memory(self, place: int, size: int) -> None:
        assert place % 256 == 0
        assert size >= self.update_device_memory_size_for_shapes()
        assert self._gpu.holds(place, size)
        self._memory = (place, size)

    def set_tensor_address(self, name: str, place: int) -> bool:
        assert place % 256 == 0
        assert name in self._tensors
        self._places[name] = place
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream in self._gpu.streams
        assert set(self._places) == set(self._tensors), "a tensor has no address"
        assert self._memory[1], "no scratch memory"
        if self._stored.get("fails") or (self._stored.get("uncapturable") and self._gpu.capturing is not None):
            self._gpu.broken = True
            return False
        places, memory = dict(self._places), self._memory  # what is recorded does not change any more
        self._gpu.put(lambda: self._run(places, memory))
        self._gpu.did["enqueued"] += 1
        return True

    def _run(self, places: dict[str, int], memory: tuple[int, int]) -> None:
        assert self._gpu.holds(*memory), "the scratch memory has moved"
        views = {
            name: self._view(places[name], self.get_tensor_shape(name), spec.dtype)
            for name, spec in self._tensors.items()
        }
        for name, value in self._net.run({spec.name: views[spec.name] for spec in self._net.inputs}).items():
            views[name][...] = value
        self._gpu.did["ran"] += 1

    def _view(self, place: int, shape: tuple[int, ...], dtype: str) -> Any:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert self._gpu.holds(place, size)
        start, held = next(one for one in self._gpu.device.items() if one[0] <= place < one[0] + len(one[1]))
        return held[place - start :][:size].view(dtype).reshape(shape)


class RtxContext(IExecutionContext):
    def is_stream_capturable(self, stream: int) -> bool:
        return not self._stored.get("compiling")


class RtxRuntime(Runtime):
    def _engine(self, stored: dict[str, Any]) -> ICudaEngine:
        return RtxEngine(self._gpu, stored)

    def get_engine_validity(self, data: bytes) -> tuple[EngineValidity, int]:
        return (EngineValidity.INVALID, 2) if json.loads(data).get("foreign") else (EngineValidity.VALID, 0)


def nptype(name: str) -> Any:
    return np.dtype(name).type


ENUMS = (TensorLocation, TensorIOMode, ExecutionContextAllocationStrategy, SerializationFlag)
RTX_ENUMS = (CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy, EngineValidity, EngineInvalidityDiagnostics)
CLASSES = {
    "ILogger": ILogger,
    "Runtime": RtxRuntime,
    "ICudaEngine": RtxEngine,
    "IExecutionContext": RtxContext,
    "IRuntimeConfig": IRuntimeConfig,
    "IRuntimeCache": IRuntimeCache,
    "ISerializationConfig": ISerializationConfig,
    "OnnxParserRefitter": OnnxParserRefitter,
    "Refitter": Refitter,
    "Weights": Weights,
}


def library(gpu: FakeCuda, backend: str) -> Any:
    """The module."""
    rtx = backend == "tensorrt-rtx"
    made = SimpleNamespace(__version__=VERSION, ILogger=ILogger, nptype=nptype)
    made.Runtime = type("Runtime", (RtxRuntime if rtx else Runtime,), {"_gpu": gpu})
    made.Refitter, made.OnnxParserRefitter = Refitter, OnnxParserRefitter
    for kind in (*ENUMS, *(RTX_ENUMS if rtx else ())):
        setattr(made, kind.__name__, kind)
    return made
