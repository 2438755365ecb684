"""A graph as OpenVINO compiles it: for any sizes or for fixed ones, from its ONNX file or as it was kept."""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ldmrt.runtime.backends.by_sizes import Sizes, sizes_in
from ldmrt.runtime.backends.kept_networks import keeping, kept
from ldmrt.runtime.errors import LdmrtError, LdmrtWarning, first_line
from ldmrt.runtime.tensors import Array, Specs, TensorSpec

from .api import CompiledModel, Model, Port
from .convolutions import restore_convolutions
from .devices import core
from .int8 import compute_in_int8
from .islands import keep_in_float32, modules_of
from .library import openvino, reason, shared
from .ranges import Range

COMPILED = "model.blob"  # of a network that is kept as it was compiled
TILED = ("fp32",)  # precisions in which convolutions by Winograd's tiles are faster than OpenVINO's own
FIXED = "fixed"  # how the name of its folder ends where it is for fixed sizes


class Network(NamedTuple):
    """A compiled network, and its file where it was imported: OpenVINO reads weights from there, mapped into memory."""

    model: CompiledModel
    sizes: Sizes | None  # that it runs alone; any where it is None
    blob: Array | None = None


@dataclass
class Graph:
    """Compiles one ONNX file.

    Attributes:
        component: The component that errors name.
        path: The ONNX file.
        device: OpenVINO's name of the device.
        options: OpenVINO's options.
        compute: The precision that it computes in.
        in_float32: Tells of a module's path whether it computes in float32 all the same; None where none does.
        specs: Inputs and outputs, with their shapes in symbols; None until they are known.
        ranges: Of what the modules take that compute in int8, by their paths; None in other precisions.
        folder: Where the network for any sizes is kept. That for fixed sizes is kept beside it: one, of the sizes that
            were worth it last.
        check: Raises where the file is not that of the opened bundle any more; called before and after it is read.
    """

    component: str
    path: Path
    device: str
    options: Mapping[str, str]
    compute: str
    in_float32: Callable[[str], bool] | None
    ranges: Mapping[str, Range] | None
    specs: tuple[Specs, Specs] | None
    folder: Path | None
    check: Callable[[], None]

    def first(self) -> Network:
        """Open the network for fixed sizes that is kept; else that for any sizes.

        Raises:
            LdmrtError: OpenVINO cannot open the file.
        """
        self.check()
        return self._imported(self._place(fixed=True)) or self.open(None)

    def open(self, sizes: Sizes | None) -> Network:
        """Open the network for these sizes alone, or for any; it is compiled and kept where none is kept yet.

        Raises:
            LdmrtError: OpenVINO cannot open the file.
        """
        self.check()
        place = self._place(fixed=sizes is not None)
        network = self._imported(place)
        if network is None or network.sizes != sizes:
            network = Network(self._compiled(sizes), sizes)
            if place is not None:
                _keep(network.model, place)
        self.check()
        return network

    def _place(self, *, fixed: bool) -> Path | None:
        """Return the folder that a network is kept in, if any is."""
        return self.folder.with_name(self.folder.name + FIXED) if fixed and self.folder is not None else self.folder

    def _compiled(self, sizes: Sizes | None) -> CompiledModel:
        """Compile the ONNX file."""
        try:
            graph = read_graph(self.component, self.path)
            # Those of the compiled model may have names of nodes that were removed.
            found = tuple(map(_spec, graph.inputs)), tuple(map(_spec, graph.outputs))
            self.specs = self.specs or found
            _check_names(self.component, self.path, self.specs, found)
            if self.compute not in TILED:
                restore_convolutions(graph)
            if self.ranges:
                exact = self.in_float32 or (lambda _: False)
                compute_in_int8(graph, {path: ends for path, ends in self.ranges.items() if not exact(path)})
            if self.in_float32 is not None:
                keep_in_float32(graph, self.in_float32)
            if sizes is not None:
                graph.reshape({spec.name: _shape(spec, sizes) for spec in self.specs[0]})
            return core().compile_model(graph, self.device, self.options)
        except LdmrtError:
            raise
        except Exception as error:  # OpenVINO raises RuntimeError and classes of its own
            problem, hint = f"OpenVINO cannot open {self.path}", "export the bundle again, or --backend onnxruntime"
            raise LdmrtError(self.component, problem, found=reason(error), hint=hint) from None

    def _imported(self, folder: Path | None) -> Network | None:
        """Open the compiled network that a folder keeps; None where there is none, or none of this OpenVINO's."""
        file = kept(folder, COMPILED) if folder is not None and self.specs is not None else None
        if file is None or self.specs is None:
            return None
        try:
            blob = np.memmap(file, np.uint8, "c")
            model = core().import_model(shared(blob), self.device, self.options)
            return Network(model, _sizes(self.specs[0], model.inputs), blob)
        except (OSError, ValueError, RuntimeError):
            return None


def read_graph(component: str, path: Path) -> Model:
    """Read an ONNX file; only with the frontend for ONNX, as the others print what they think of a damaged one."""
    frontend = openvino(component).frontend.FrontEndManager().load_by_framework("onnx")
    model: Model = frontend.convert(frontend.load(str(path)))
    return model


def modules(component: str, path: Path) -> list[str]:
    """List the paths of the modules in an ONNX file, outer ones first; only OpenVINO's reader opens it."""
    inner = {path for _, path in modules_of(read_graph(component, path))}
    return sorted({module.rsplit(".", depth)[0] for module in inner for depth in range(module.count(".") + 1)} - {""})


def _check_names(component: str, path: Path, expected: tuple[Specs, Specs], found: tuple[Specs, Specs]) -> None:
    """Raise an `LdmrtError` where a graph has other inputs and outputs than stated; OpenVINO opens empty files too."""
    names, others = ([spec.name for spec in (*inputs, *outputs)] for inputs, outputs in (expected, found))
    if names != others or not names:
        problem, hint = f"OpenVINO cannot open {path} as this network", "export the bundle again"
        raise LdmrtError(component, problem, expected=", ".join(names), found=", ".join(others) or "none", hint=hint)


def _keep(model: CompiledModel, folder: Path) -> None:
    """Keep a compiled network, where the disk has room for it."""
    try:
        with keeping(folder) as work:
            if work is not None:
                stream = io.BytesIO()
                model.export_model(stream)
                (work / COMPILED).write_bytes(stream.getbuffer())
    except (OSError, MemoryError, RuntimeError) as error:
        message = f"{folder.parent}: nothing can be kept there: {first_line(error)}"
        warnings.warn(message, LdmrtWarning, stacklevel=4)


def _spec(port: Port) -> TensorSpec:
    """Describe an input or output; dimensions that may change are named after it."""
    name = port.get_any_name()
    shape = tuple(
        f"{name}_{axis}" if dim.is_dynamic else dim.get_length() for axis, dim in enumerate(port.get_partial_shape())
    )
    return TensorSpec(name, np.dtype(port.get_element_type().to_dtype()).name, shape)  # type: ignore[call-overload]


def _shape(spec: TensorSpec, sizes: Sizes) -> list[int]:
    """Return the shape of an input whose symbolic dimensions have these sizes."""
    return [sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape]


def _sizes(specs: Specs, ports: Sequence[Port]) -> Sizes | None:
    """Return the size of every symbolic dimension of a compiled network's inputs; None where one may change."""
    shapes = {spec.name: port.get_partial_shape() for spec, port in zip(specs, ports, strict=True)}
    if any(dim.is_dynamic for shape in shapes.values() for dim in shape):
        return None
    return sizes_in(specs, {name: tuple(dim.get_length() for dim in shape) for name, shape in shapes.items()})
