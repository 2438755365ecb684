"""Writes one component as one ONNX file, with its weights in a file beside it."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ldmrt.export.components.component import Component
from ldmrt.export.components.specs import tensors
from ldmrt.export.components.table import example
from ldmrt.export.dims import DIMS
from ldmrt.model.weights.unread import read_alone
from ldmrt.runtime.bundle.graphs import STEP
from ldmrt.runtime.tensors import TensorSpec, split_symbol

from .attention import attend_side_by_side
from .autoencoder_parts import write_tiles
from .checks import check_graph
from .cpu.upsample import convolve_before_upsampling
from .cpu.winograd import convolve_by_tiles
from .cuda.write import write_cuda_graphs
from .fused_step import write_fused_step
from .naming import name_after_modules
from .operators.decompositions import lowered_once
from .operators.translations import TRANSLATIONS

if TYPE_CHECKING:
    from onnx_ir import Function, Graph, Model, TensorProtocol

GRAPH = 9  # grows when the same component is written as another graph: bundles then export it again
OPSET = 23  # native Attention
ROWS = 26  # about as often the U-Net runs for an image: Winograd's tiles then pay for all convolutions to 640 channels
INLINE = 1024  # bytes: smaller constants stay in the graph, where shape inference reads them

LARGE = 65536  # bytes: the exporter's optimiser computes nothing of larger constants; it only turns matrices
# Rules of the exporter's optimiser, by how their names begin:
# - The one rule that compares each node with every `Slice`. Chunks of a tensor are traced as one `Split` already, so it
#   finds nothing; of FLUX.1's 57 blocks it takes minutes, and of the optimiser's time most.
# - Those that remove a bias of zeros: a LoRA or `ldmrt engines refit` may put other numbers in its place.
SLICES, ZEROS = "SlicesSplit", "RemoveOptionalBias"
LEFT_OUT: tuple[str, ...] = (SLICES, ZEROS)
BITS = {2: np.int16, 4: np.int32}  # by size in bytes, as NumPy has no bfloat16
TORCH = {"FLOAT": torch.float32, "FLOAT16": torch.float16, "BFLOAT16": torch.bfloat16}  # by ONNX's name


def to_onnx(component: Component, folder: Path, *, rewritten: bool = True) -> Path:
    """Trace a component in PyTorch and write it as ONNX, opset 23, its dimensions named after the specs.

    Float32 components get the convolutions of `upsample` and `winograd`. Beside a U-Net its fused step is written,
    beside a decoder or an encoder its parts for tiles, as `component.graphs` lists them. Beside each of them, where
    its operators differ, stands its graph for CUDA. Weights are read one at a time, when they are written.

    Args:
        component: The network; its precision is the graph's.
        folder: Where model.onnx and model.onnx_data are written; it is made where it is missing.
        rewritten: Float32 convolutions are rewritten; without it they are PyTorch's, for measurements.

    Returns:
        The path of model.onnx.

    Raises:
        LdmrtError: ONNX's checker refuses a graph.
    """
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    inputs, outputs, unit = component.inputs, component.outputs, component.unit
    # Odd, unequal sides: the tracer cannot take a size for a constant. One timestep: the graph expands it to the batch.
    sizes = {"batch": 2, "height": 9 * unit, "width": 13 * unit, "timesteps": 1}
    feeds = tensors(inputs, example(component, sizes))
    with _quiet(), torch.no_grad(), lowered_once():
        program = torch.onnx.export(
            _Positional(component.module, list(feeds)),
            tuple(feeds.values()),
            dynamo=True,
            dynamic_shapes={"arrays": tuple(_dynamic(spec, unit) for spec in inputs)},
            input_names=[spec.name for spec in inputs],
            output_names=[spec.name for spec in outputs],
            opset_version=OPSET,
            custom_translation_table=TRANSLATIONS,
            optimize=False,
        )
        assert program is not None
        used = _weights(program.model)
        with fewer_rules():
            program.optimize()
        assert _weights(program.model) >= used, "the optimiser computed something of a weight that was not read"
    model = program.model
    _read_when_written(model)
    name_after_modules(model)
    _strip(model)
    attend_side_by_side(model)
    if rewritten and component.precision == "fp32":
        convolve_before_upsampling(model)
        convolve_by_tiles(model, ROWS if any(spec.name == "timestep" for spec in inputs) else 1)
    RemoveUnusedNodesPass()(model)
    model.graph.sort()  # which the optimiser of older versions of onnxscript does not leave so
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
        write_fused_step(component.name, path, *component.graphs[STEP])
    elif component.graphs:
        write_tiles(component.name, path, component.graphs)
    if component.precision != "bf16":  # ONNX Runtime's own operators have no kernels for it
        write_cuda_graphs(component.name, folder)
    return path


@contextlib.contextmanager
def fewer_rules() -> Iterator[None]:
    """Let the exporter's optimiser leave out the rules of `LEFT_OUT`."""
    from onnxscript import rewriter

    rules = rewriter._DEFAULT_REWRITE_RULES
    rewriter._DEFAULT_REWRITE_RULES = tuple(rule for rule in rules if not (rule.name or "").startswith(LEFT_OUT))
    try:
        yield
    finally:
        rewriter._DEFAULT_REWRITE_RULES = rules


class _Positional(torch.nn.Module):
    """Wraps a module so that it takes its named inputs in order: the tracer knows no keyword arguments."""

    def __init__(self, module: torch.nn.Module, names: list[str]) -> None:
        """Wrap a module, in evaluation mode, whose inputs have these names."""
        super().__init__()
        self.module, self.names = module.eval(), names

    def forward(self, *arrays: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the outputs, in order."""
        return self.module(**dict(zip(self.names, arrays, strict=True)))


def _dynamic(spec: TensorSpec, unit: int) -> dict[int, torch.export.Dim]:
    """Return torch's dynamic dimensions of one input by axis; heights and widths count in units of `unit` pixels."""
    dims: dict[int, torch.export.Dim] = {}
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
    """Return an output's dimension in terms of the inputs', as optimum evaluates it to reserve memory.

    "height/8" becomes "height / 8" where an input has "height", and "height" becomes "height/8 * 8" where the inputs
    have only the eighth.
    """
    if isinstance(dim, int) or dim in known:
        return dim
    name, divisor = split_symbol(dim)
    if name in known:
        return f"{name} / {divisor}"
    whole = next(symbol for symbol in sorted(known) if split_symbol(symbol)[0] == name)
    return f"{whole} * {split_symbol(whole)[1] // divisor}"


def _read_when_written(model: "Model") -> None:
    """Let each weight of a graph be read, from its file perhaps, when it is written, and not be kept."""
    from onnx_ir import LazyTensor, Shape

    for value in model.graph.initializers.values():
        constant = value.const_value
        if constant is not None and (weight := _memory(constant)) is not None:
            get = partial(_constant, constant, weight)
            large = constant.nbytes > INLINE
            shape = Shape(constant.shape.numpy())
            value.const_value = LazyTensor(get, constant.dtype, shape, name=value.name) if large else get()


def _weights(model: "Model") -> set[int]:
    """Return the addresses of the large constants that nodes of a graph use."""
    constants = [value.const_value for value in model.graph.initializers.values() if value.uses()]
    memories = [_memory(constant) for constant in constants if constant is not None and constant.nbytes > LARGE]
    return {memory.data_ptr() for memory in memories if memory is not None}


def _memory(constant: "TensorProtocol") -> torch.Tensor | None:
    """Return the memory of a constant: of a weight, or of a view of one that the exporter's optimiser turned."""
    raw = getattr(constant, "raw", None)
    if isinstance(raw, np.ndarray) and raw.nbytes > INLINE and raw.flags.writeable and constant.dtype.name in TORCH:
        return torch.from_numpy(raw.view(BITS[raw.itemsize])).view(TORCH[constant.dtype.name])
    return raw if isinstance(raw, torch.Tensor) else None


def _constant(constant: "TensorProtocol", weight: torch.Tensor) -> "TensorProtocol":
    """Read a weight as a constant like this one."""
    from onnx_ir import Tensor

    numbers = read_alone(weight)
    raw = getattr(constant, "raw", None)
    if isinstance(raw, np.ndarray):
        bits = numbers.contiguous().view(getattr(torch, np.dtype(BITS[raw.itemsize]).name)).numpy()
        return Tensor(bits.view(raw.dtype), dtype=constant.dtype, name=constant.name)
    return type(constant)(numbers, name=constant.name)  # type: ignore[call-arg]


def _strip(model: "Model") -> None:
    """Remove the tracer's notes, such as stack traces with paths of the machine that exports."""
    graphs: list[Graph | Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
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
    """Silence the exporter's own log and warnings: the checker and parity report what matters."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
