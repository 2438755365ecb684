"""What the TensorRT of straw computes: a small network of its own, or an ONNX file's with the weights of the plan."""

import base64
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.tensors import TensorSpec, shape_of, sizes_of

Arrays = dict[str, NDArray[Any]]
Shapes = dict[str, tuple[int, ...]]


def network(stored: dict[str, Any]) -> "Small | Graph":
    """Of a plan."""
    if "onnx" not in stored:
        return Small()
    path = Path(stored["onnx"])
    return Graph(path, stored["weights"]) if "weights" in stored else _as_it_is(path)


class Small:
    """out_state = 2 state + row + context's sum, out_row = row + 1."""

    inputs = (
        TensorSpec("state", "float32", ("batch", 4, "height", "width")),
        TensorSpec("row", "int64", ("batch",)),
        TensorSpec("context", "float16", ("batch", 3)),
    )
    outputs = (
        TensorSpec("out_state", "float32", ("batch", 4, "height", "width")),
        TensorSpec("out_row", "int64", ("batch",)),
    )

    def run(self, arrays: Arrays) -> Arrays:
        state, row, context = (arrays[spec.name] for spec in self.inputs)
        added = (row + context.astype(np.float32).sum(-1))[:, None, None, None].astype(np.float32)
        return {"out_state": 2 * state + added, "out_row": row + 1}


class Graph:
    """A graph of a bundle; `weights` of the plan take the place of those of the file."""

    def __init__(self, path: Path, weights: dict[str, list[Any]]) -> None:
        self._path, self._weights = path, weights
        name = path.parent.name if path.name == "model.onnx" else path.stem
        self.inputs, self.outputs = Bundle.open(path.parents[1], check=False).specs(name)

    @cached_property
    def _session(self) -> Any:
        import onnx
        import onnxruntime as ort

        if not self._weights:
            return ort.InferenceSession(str(self._path), providers=["CPUExecutionProvider"])
        model = onnx.load(self._path)
        for one in model.graph.initializer:
            if one.name in self._weights:
                one.CopyFrom(onnx.numpy_helper.from_array(array(self._weights[one.name]), one.name))
        return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(self, arrays: Arrays) -> Arrays:
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._session.run(names, arrays), strict=True))


@cache
def _as_it_is(path: Path) -> Graph:
    return Graph(path, {})


def output_shape(spec: TensorSpec, inputs: tuple[TensorSpec, ...], shapes: Shapes) -> tuple[int, ...]:
    """Of these input shapes."""
    sizes: dict[str, int] = {}
    for one in inputs:
        sizes |= sizes_of(one, shapes[one.name])
    return shape_of(spec, sizes)


def weights_of(path: str) -> Arrays:
    """Weights of an ONNX file by name, as its parser names them; constants that shapes hang on are none."""
    import onnx

    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    found = [one for one in onnx.load(path).graph.initializer if one.data_type in kinds and one.dims]
    return {one.name: onnx.numpy_helper.to_array(one) for one in found}


def plain(value: NDArray[Any]) -> list[Any]:
    """As a plan keeps it."""
    return [str(value.dtype), list(value.shape), base64.b64encode(value.tobytes()).decode()]


def array(stored: list[Any]) -> NDArray[Any]:
    """The inverse."""
    dtype, shape, data = stored
    return np.frombuffer(base64.b64decode(data), dtype).reshape(shape)
