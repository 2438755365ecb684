"""The part of TensorRT's Python API that loads and runs engines, as types: the packages have none."""

from collections.abc import Sequence
from typing import Protocol, SupportsInt

from ldmrt.runtime.tensors import Array, Shape


class EngineValidity(Protocol):
    """Whether a plan runs on a GPU (tensorrt_rtx.EngineValidity)."""

    name: str  # VALID, SUBOPTIMAL or INVALID


class RuntimeCache(Protocol):
    """The kernels that TensorRT-RTX has compiled (tensorrt_rtx.IRuntimeCache)."""

    def serialize(self) -> bytes:
        """Return the kernels, to be kept in a file."""

    def deserialize(self, blob: bytes) -> bool:
        """Take kernels from an earlier process; False where they are of another driver or GPU."""


class RuntimeConfig(Protocol):
    """How TensorRT-RTX compiles the kernels of a context (tensorrt_rtx.IRuntimeConfig)."""

    dynamic_shapes_kernel_specialization_strategy: object  # of trt.DynamicShapesKernelSpecializationStrategy
    cuda_graph_strategy: object  # of trt.CudaGraphStrategy

    def set_execution_context_allocation_strategy(self, strategy: object) -> None:
        """Choose who allocates scratch memory."""

    def create_runtime_cache(self) -> RuntimeCache:
        """Make an empty cache."""

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        """Use a cache."""


class SerializationConfig(Protocol):
    """How an engine is written (tensorrt.ISerializationConfig)."""

    def set_flag(self, flag: object) -> bool:
        """Set a flag of trt.SerializationFlag."""


class ExecutionContext(Protocol):
    """Runs an engine for one set of shapes (tensorrt.IExecutionContext)."""

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        """Choose the bucket."""

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        """Fix the shape of an input."""

    def infer_shapes(self) -> Sequence[str]:
        """Return the names of tensors whose shapes are still unknown."""

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """Return a shape, in which -1 is unknown."""

    def update_device_memory_size_for_shapes(self) -> int:
        """Return the bytes of scratch memory that these shapes take."""

    def set_device_memory(self, address: int, size: int) -> None:
        """Use scratch memory."""

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Read or write a tensor at an address on the GPU."""

    def execute_async_v3(self, stream: int) -> bool:
        """Put a run on a stream."""


class CudaEngine(Protocol):
    """A plan that is loaded (tensorrt.ICudaEngine)."""

    num_io_tensors: int
    refittable: bool  # whether its weights can be replaced
    streamable_weights_size: int  # bytes that may stay on the host
    weight_streaming_budget_v2: int  # bytes of them that stay on the GPU

    def get_tensor_name(self, index: int) -> str:
        """Return the name of an input or output by its number."""

    def get_tensor_dtype(self, name: str) -> object:
        """Return a tensor's dtype, of trt.DataType."""

    def get_tensor_location(self, name: str) -> object:
        """Return whether a tensor is on the GPU, of trt.TensorLocation."""

    def get_tensor_mode(self, name: str) -> object:
        """Return whether a tensor is an input, of trt.TensorIOMode."""

    def create_runtime_config(self) -> RuntimeConfig:
        """Make a configuration, in TensorRT-RTX alone."""

    def create_execution_context(self, config: object) -> ExecutionContext | None:
        """Make a context by a configuration, or by an allocation strategy."""

    def create_serialization_config(self) -> SerializationConfig:
        """Make a configuration of how the engine is written."""

    def serialize_with_config(self, config: SerializationConfig) -> bytes | None:
        """Return the engine as a plan, in TensorRT's own memory."""


class Refitter(Protocol):
    """Replaces weights of a loaded engine (tensorrt.Refitter)."""

    def get_all_weights(self) -> Sequence[str]:
        """Return the names of all weights."""

    def get_missing_weights(self) -> Sequence[str]:
        """Return the names of those that have to be given too, as layers are fused."""

    def set_named_weights(self, name: str, weights: Array) -> bool:
        """Give weights, which are read where they are by `refit_cuda_engine`."""

    def refit_cuda_engine(self) -> bool:
        """Replace what was given, and wait for it."""


class Runtime(Protocol):
    """Loads plans (tensorrt.Runtime)."""

    def deserialize_cuda_engine(self, plan: bytes) -> CudaEngine | None:
        """Load a plan; None where it cannot be loaded."""

    def get_engine_validity(self, plan: bytes) -> tuple[EngineValidity, SupportsInt]:
        """Tell whether a plan runs on this GPU, and the bits of why not, in TensorRT-RTX alone."""
