"""The part of ONNX Runtime's Python API that is used here, as types: the package itself has none."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from ldmrt.runtime.tensors import Array, Dim


class Node(Protocol):
    """An input or output of a graph (onnxruntime.NodeArg)."""

    name: str
    type: str  # such as "tensor(float16)"
    shape: Sequence[Dim]


class OrtValue(Protocol):
    """A tensor on the device (onnxruntime.OrtValue)."""

    def update_inplace(self, array: Array) -> None:
        """Copy an array of the same shape and dtype into the tensor."""

    def numpy(self) -> Array:
        """Return the tensor as an array on the host."""


class IoBinding(Protocol):
    """Buffers that a session reads and writes (onnxruntime.IOBinding)."""

    def bind_ortvalue_input(self, name: str, value: OrtValue) -> None:
        """Read an input from a tensor."""

    def bind_ortvalue_output(self, name: str, value: OrtValue) -> None:
        """Write an output to a tensor."""

    def synchronize_outputs(self) -> None:
        """Wait until the outputs are written."""


class RunOptions(Protocol):
    """Options of one run (onnxruntime.RunOptions)."""

    def add_run_config_entry(self, key: str, value: str) -> None:
        """Set an option by its name."""


class SessionOptions(Protocol):
    """Options of a session (onnxruntime.SessionOptions)."""

    log_severity_level: int
    intra_op_num_threads: int
    enable_mem_pattern: bool
    enable_cpu_mem_arena: bool
    graph_optimization_level: object  # of onnxruntime.GraphOptimizationLevel
    execution_order: object  # of onnxruntime.ExecutionOrder
    optimized_model_filepath: str

    def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
        """Fix the size of a symbolic dimension."""

    def add_session_config_entry(self, key: str, value: str) -> None:
        """Set an option by its name."""


class Session(Protocol):
    """A graph that is loaded (onnxruntime.InferenceSession)."""

    def get_inputs(self) -> Sequence[Node]:
        """Return the inputs of the graph."""

    def get_outputs(self) -> Sequence[Node]:
        """Return the outputs of the graph."""

    def run(self, names: Sequence[str], feeds: Mapping[str, Array], options: RunOptions | None) -> Sequence[Array]:
        """Run once, and return the outputs in the order of `names`."""

    def io_binding(self) -> IoBinding:
        """Make a binding without buffers."""

    def run_with_iobinding(self, bound: IoBinding, options: RunOptions) -> None:
        """Run once with the buffers of a binding."""

    def run_with_ort_values(self, names: Sequence[str], feeds: Mapping[str, OrtValue]) -> Sequence[OrtValue]:
        """Run once with tensors that may be on the device, and return the outputs in the order of `names`."""
