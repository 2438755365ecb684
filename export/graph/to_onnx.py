"""One component to one ONNX file with its weights beside it."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ldmrt.export.components.table import Component, example, tensors
from ldmrt.export.dims import DIMS
from ldmrt.runtime.bundle.graphs import STEP
from ldmrt.runtime.tensors import TensorSpec, split_symbol

from .attention import attend_side_by_side
from .autoencoder_parts import write_tiles
from .checks import check_graph
from .fused_step import write_fused_step
from .group_norm import TRANSLATIONS
from .naming import name_after_modules
from .upsample import convolve_before_upsampling
from .winograd import convolve_by_tiles

GRAPH = 6  # grows when the same component is written as another graph: bundles then export it anew
OPSET = 23  # native Attention
ROWS = 26  # of the U-Net for an image, about: all that Stable Diffusion convolves to 640 channels then pays
INLINE = 1024  # bytes: smaller constants stay in the graph, which shape inference reads


def to_onnx(component: Component, folder: Path) -> Path:
    """Write FOLDER/model.onnx and model.onnx_data, checked, with the dimensions named after the specs; beside a
    U-Net its folded step.
    """
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    inputs, outputs, unit = component.inputs, component.outputs, component.unit
    # Odd and unlike: nothing is taken for granted. Of timesteps one: the graph spreads it, and takes one an image too.
    sizes = {"batch": 2, "height": 9 * unit, "width": 13 * unit, "timesteps": 1}
    feeds = tensors(component, example(component, sizes))
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _Positional(component.module, list(feeds)),
            tuple(feeds.values()),
            dynamo=True,
            dynamic_shapes={"arrays": tuple(_dynamic(spec, unit) for spec in inputs)},
            input_names=[spec.name for spec in inputs],
            output_names=[spec.name for spec in outputs],
            opset_version=OPSET,
            custom_translation_table=TRANSLATIONS,
        )
    assert program is not None
    model: Any = program.model
    name_after_modules(model)
    _strip(model)
    attend_side_by_side(model)
    if component.precision == "fp32":
        convolve_before_upsampling(model)
        convolve_by_tiles(model, ROWS if any(spec.name == "timestep" for spec in inputs) else 1)
    RemoveUnusedNodesPass()(model)
    known = {dim for spec in inputs for dim in spec.shape if isinstance(dim, str)}
    for value, spec in zip(model.graph.inputs, inputs, strict=True):
        value.shape = onnx_ir.Shape(spec.shape)
    for value, spec in zip(model.graph.outputs, outputs, strict=True):
        value.shape = onnx_ir.Shape([_axis(dim, known) for dim in spec.shape])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    onnx_ir.save(model, path, external_data="model.onnx_data", size_threshold_bytes=INLINE)
    check_graph(component.name, "the exported graph", path)
    if STEP in component.graphs:
        write_fused_step(path, *component.graphs[STEP])
    elif component.graphs:
        write_tiles(component.name, path, component.graphs)
    return path


class _Positional(torch.nn.Module):
    """A module that takes its named inputs in order: the tracer knows no `**told`."""

    def __init__(self, module: torch.nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module, self.names = module.eval(), names

    def forward(self, *arrays: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.module(**dict(zip(self.names, arrays, strict=True)))


def _dynamic(spec: TensorSpec, unit: int) -> dict[int, Any]:
    """torch's dynamic dimensions of one input, in units of so many pixels."""
    dims: dict[int, Any] = {}
    for axis, dim in enumerate(spec.shape):
        if isinstance(dim, str):
            name, divisor = split_symbol(dim)
            if name == "timesteps":
                continue
            if name in ("height", "width"):
                units = torch.export.Dim(name[0], min=2, max=DIMS[name].max // unit)
                dims[axis] = units if divisor == unit else unit // divisor * units
            else:
                dims[axis] = torch.export.Dim(name, min=DIMS[name].min, max=DIMS[name].max)
    return dims


def _axis(dim: int | str, known: set[str]) -> int | str:
    """An output's dimension in terms of the inputs', as optimum evaluates it to reserve memory: "height / 8", and
    "height/8 * 8" for a height of which the inputs have the eighth.
    """
    if isinstance(dim, int) or dim in known:
        return dim
    name, divisor = split_symbol(dim)
    if name in known:
        return f"{name} / {divisor}"
    whole = next(symbol for symbol in sorted(known) if split_symbol(symbol)[0] == name)
    return f"{whole} * {split_symbol(whole)[1] // divisor}"


def _strip(model: Any) -> None:
    """Remove what the tracer left behind: stack traces with paths of the machine that exported."""
    for graph in (model.graph, *model.functions.values()):
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
        for value in (*graph.inputs, *graph.outputs, *getattr(graph, "initializers", {}).values()):
            value.metadata_props.clear()
        graph.metadata_props.clear()
        graph.doc_string = None
    model.metadata_props.clear()
    model.doc_string = None
    model.producer_name, model.producer_version = "ldmrt", ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's own log and warnings, kept from the user: the checker and parity say what matters."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
