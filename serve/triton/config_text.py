"""Write Triton's model configurations, config.pbtxt, as protobuf's text format has them.

Triton's model_config.proto names the fields.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.tensors import Specs, TensorSpec

from .tensors import ANY, Tensor

TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
}


class Word(str):
    """The name of an enum's value, which stands without quotes."""


Value: TypeAlias = "str | bool | int | Message | Sequence[int] | Sequence[Message]"
Message: TypeAlias = Mapping[str, Value]


def text_of(message: Message, depth: int = 0) -> str:
    """Return a message in protobuf's text format, a line for each field."""
    return "".join(f"{'  ' * depth}{line}\n" for name, value in message.items() for line in _field(name, value, depth))


def _field(name: str, value: Value, depth: int) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield f"{name} {{\n{text_of(value, depth + 1)}{'  ' * depth}}}"
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if value and isinstance(value[0], Mapping):
            for item in value:
                yield from _field(name, item, depth)
        else:
            yield f"{name}: [{', '.join(map(str, value))}]"
    elif isinstance(value, Word):
        yield f"{name}: {value}"
    else:
        yield f"{name}: {json.dumps(value, ensure_ascii=False)}"


def python_model(
    name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], parameters: Mapping[str, str]
) -> Message:
    """Describe a model of the Python backend, of which there is one instance, wherever its parameters say."""
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": 0,  # requests share calls of the U-Net row by row, whatever their shapes
        "input": [_tensor(one) for one in inputs],
        "output": [_tensor(one) for one in outputs],
        "instance_group": [{"count": 1, "kind": Word("KIND_MODEL")}],
        "parameters": [{"key": key, "value": {"string_value": value}} for key, value in parameters.items()],
    }


def onnx_model(name: str, inputs: Specs, outputs: Specs, *, gpu: bool) -> Message:
    """Describe an ONNX file for the backend of ONNX Runtime, with the shapes of its graph.

    Raises:
        LdmrtError: A tensor has a type that Triton does not know.
    """
    return {
        "name": name,
        "platform": "onnxruntime_onnx",
        "max_batch_size": 0,
        "input": [_spec(name, spec) for spec in inputs],
        "output": [_spec(name, spec) for spec in outputs],
        "instance_group": [{"count": 1, "kind": Word("KIND_GPU" if gpu else "KIND_CPU")}],
    }


def _tensor(tensor: Tensor) -> Message:
    fields: dict[str, Value] = {"name": tensor.name, "data_type": Word(tensor.type), "dims": tensor.shape}
    return fields | ({"optional": True} if tensor.optional else {})


def _spec(model: str, spec: TensorSpec) -> Message:
    if spec.dtype not in TYPES:
        raise LdmrtError(model, f"Triton has no type {spec.dtype}", found=spec)
    dims = [size if isinstance(size, int) else ANY for size in spec.shape]
    fields: dict[str, Value] = {"name": spec.name, "data_type": Word(TYPES[spec.dtype]), "dims": dims or [1]}
    return fields | ({} if dims else {"reshape": {"shape": []}})  # Triton knows a scalar by its reshaping alone
