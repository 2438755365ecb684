"""The part of OpenVINO's Python API that is used here, as types."""

from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from typing import Protocol

from ldmrt.runtime.tensors import Array


class ElementType(Protocol):
    """The type of a tensor's elements (openvino.Type)."""

    def to_dtype(self) -> object:
        """Return NumPy's dtype."""

    def get_type_name(self) -> str:
        """Return its name, such as "f32"."""


class Dimension(Protocol):
    """One dimension of a shape (openvino.Dimension)."""

    is_dynamic: bool

    def get_length(self) -> int:
        """Return the size of a dimension that is fixed."""


class Port(Protocol):
    """An input or output of a network (openvino.Output)."""

    def get_any_name(self) -> str:
        """Return its name."""

    def get_partial_shape(self) -> Sequence[Dimension]:
        """Return its shape, with dimensions that may change."""

    def get_element_type(self) -> ElementType:
        """Return the type of its elements."""


class Tensor(Protocol):
    """An array of OpenVINO's (openvino.Tensor)."""

    data: Array


class InferRequest(Protocol):
    """One run of a network at a time, with its own memory (openvino.InferRequest)."""

    def set_input_tensor(self, index: int, tensor: Tensor) -> None:
        """Read an input from this array."""

    def set_output_tensor(self, index: int, tensor: Tensor) -> None:
        """Write an output to this array."""

    def get_output_tensor(self, index: int) -> Tensor:
        """Return an output of the last run."""

    def start_async(self) -> None:
        """Start a run."""

    def wait(self) -> None:
        """Wait for the run to end; raise what it failed with."""


class Target(Protocol):
    """The input of a node that an output goes to (openvino.Input)."""

    def get_node(self) -> "Node":
        """Return the node that takes it."""

    def replace_source_output(self, value: "Value") -> None:
        """Take another value."""


class Value(Protocol):
    """One output of a node (openvino.Output)."""

    def get_node(self) -> "Node":
        """Return the node."""

    def get_index(self) -> int:
        """Return which of its outputs it is."""

    def get_element_type(self) -> ElementType:
        """Return the type of its elements."""

    def get_target_inputs(self) -> Collection[Target]:
        """Return where it goes."""

    def replace(self, other: "Value") -> None:
        """Let another value go there instead."""


class Node(Protocol):
    """An operator of a network that was read (openvino.Node); `data` is that of a constant."""

    data: Array

    def get_name(self) -> str:
        """Return its own name in this network, which OpenVINO gives it."""

    def get_friendly_name(self) -> str:
        """Return its name, which is that in the ONNX file where it has one."""

    def set_friendly_name(self, name: str) -> None:
        """Name it."""

    def get_type_name(self) -> str:
        """Return the name of the operator, such as "Convolution"."""

    def get_attributes(self) -> Mapping[str, object]:
        """Return its settings, by name."""

    def input(self, index: int) -> Target:
        """Return an input."""

    def input_value(self, index: int) -> Value:
        """Return what an input takes."""

    def input_values(self) -> Sequence[Value]:
        """Return what all inputs take."""

    def output(self, index: int) -> Value:
        """Return an output."""

    def outputs(self) -> Sequence[Value]:
        """Return all outputs."""

    def get_rt_info(self) -> Mapping[str, object]:
        """Return what is noted for compilers, by name."""

    def set_rt_info(self, value: object, key: str) -> None:
        """Note something for compilers."""


class Model(Protocol):
    """A network that was read (openvino.Model)."""

    inputs: Sequence[Port]
    outputs: Sequence[Port]

    def get_ops(self) -> Sequence[Node]:
        """Return all nodes."""

    def get_ordered_ops(self) -> Sequence[Node]:
        """Return all nodes, each after those that it takes something from."""

    def reshape(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Fix the shapes of inputs, by name."""


class CompiledModel(Protocol):
    """A network for one device (openvino.CompiledModel)."""

    inputs: Sequence[Port]

    def create_infer_request(self) -> InferRequest:
        """Make a request, which holds memory of its own."""

    def export_model(self, stream: BytesIO) -> None:
        """Write what `Core.import_model` opens."""


class Core(Protocol):
    """The devices of this machine (openvino.Core)."""

    available_devices: Sequence[str]

    def get_property(self, device: str, name: str) -> Sequence[str]:
        """Return a property of a device."""

    def read_model(self, model: bytes) -> Model:
        """Read a network in OpenVINO's own format, IR."""

    def compile_model(self, model: Model, device: str, config: Mapping[str, str]) -> CompiledModel:
        """Compile a network for a device."""

    def import_model(self, blob: Tensor, device: str, config: Mapping[str, str]) -> CompiledModel:
        """Open a network that was compiled before."""
