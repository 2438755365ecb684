"""Where an exported component begins to differ: PyTorch and ONNX Runtime on the same inputs, module by module.

What a module takes, where it takes one tensor, is compared too: a module is blamed only for what happens within it.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.hooks import RemovableHandle

from ldmrt.export.components.component import Component
from ldmrt.export.graph.module_graph import Graph
from ldmrt.export.graph.naming import module_path
from ldmrt.runtime.backends.ort.engine import DTYPES
from ldmrt.runtime.backends.ort.library import onnxruntime, session_options
from ldmrt.runtime.bundle.graphs import path_of
from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.parity.tolerances import COMPONENT
from ldmrt.runtime.tensors import conform

EXTREME = 65504 / 2  # half of float16's maximum: another prompt may bring twice the largest value of this one
HELD = 2**30  # bytes of PyTorch's tensors that are held at once; ONNX Runtime's are as many
TOP = 10
TAKES, GIVES, RESULT = "takes", "gives", "result"

Watcher = Callable[[str, str, torch.Tensor, int], None]  # path, TAKES or GIVES, tensor, depth


@dataclass(frozen=True)
class Row:
    """Compares one tensor on both sides."""

    module: str  # that made it, "" where the network did between its modules
    node: str  # that made it
    difference: float  # the largest, relative to PyTorch's largest value; infinite where not finite
    jump: float  # how many times the largest difference among the compared tensors that it was computed from
    expected: float  # PyTorch's largest absolute value
    found: float  # ONNX Runtime's

    @property
    def extreme(self) -> bool:
        """Whether either side is above half of float16's maximum or not finite."""
        return not (self.expected <= EXTREME and self.found <= EXTREME)

    def __str__(self) -> str:
        """Return a line of the table that `Bisection` prints."""
        return f"{self.difference:10.1e} {self.jump:9.1f} {self.expected:9.3g} {self.found:9.3g}  {self.node}"


@dataclass(frozen=True)
class Bisection:
    """All rows in the order that PyTorch computes them."""

    component: str
    tolerance: float
    rows: tuple[Row, ...]

    @property
    def first(self) -> Row | None:
        """The first that is past the tolerance."""
        return next((row for row in self.rows if not row.difference <= self.tolerance), None)

    @property
    def jumps(self) -> tuple[Row, ...]:
        """Return the rows that differ most from what they were computed from, the largest first."""
        return tuple(sorted(self.rows, key=lambda row: -row.jump)[:TOP])

    @property
    def extremes(self) -> tuple[Row, ...]:
        """Return the rows that float16 may not hold."""
        return tuple(row for row in self.rows if row.extreme)

    def __str__(self) -> str:
        """Return the first row past the tolerance, the largest jumps and the extreme values as tables."""
        head = f"{'difference':>10} {'jump':>9} {'PyTorch':>9} {'ONNX':>9}  node"
        found = [self.first] if self.first else []
        within = found and self.rows[-1].difference <= self.tolerance
        but = f", but what it gives is within ({self.rows[-1].difference:.1e})" if within else ""
        parts = [
            (f"{self.component}: {len(self.rows)} tensors, the first past {self.tolerance:g}{but}", found),
            ("largest jumps", self.jumps),
            (f"above {EXTREME:g}, half of fp16's maximum, or not finite", self.extremes),
        ]
        lines = []
        for title, rows in parts:
            lines += [f"{title}:" if rows else f"{title}: none", *([head] if rows else []), *map(str, rows)]
        return "\n".join(lines)


def bisect(
    component: Component,
    path: Path,
    feeds: Mapping[str, NDArray],
    *,
    tolerance: float = COMPONENT["fp32"].limit,
    depth: int | None = None,
    at_once: int | None = None,
) -> Bisection:
    """Run both sides on `feeds` and compare what the modules take and give.

    `depth` 1 compares the modules that the network itself calls, 2 also those that these call; `at_once` tensors are
    held at a time, as many as fit in a gigabyte where left out. `tolerance` is that of float32 where left out.

    ONNX Runtime optimises as always, except that it cannot fuse over a tensor that is looked at.
    """
    graph = Graph.read(component.name, path)
    taps = _taps(component, graph, feeds, depth)
    differences: dict[str, float] = {}
    ranges: dict[str, tuple[float, float]] = {}
    floors: dict[str, float] = {}
    for part in _slices(taps, at_once):
        expected = _pytorch(component, feeds, part)
        found = _onnx(component, graph, path, feeds, [tap.value for tap in part])
        for value in list(expected):
            a, b = expected.pop(value), found.pop(value)
            differences[value], ranges[value] = _difference(a, b), (_largest(a), _largest(b))
            floors[value] = float(np.finfo(a.dtype).eps)
    rows = []
    for tap in taps:
        before = [differences[source] for source in graph.sources(tap.value, differences)]
        jump = differences[tap.value] / max([floors[tap.value], *before])  # what is exact before: one rounding
        node = graph.maker[tap.value].name
        rows.append(
            Row(path_of(node), node, differences[tap.value], 1.0 if np.isnan(jump) else jump, *ranges[tap.value])
        )
    return Bisection(component.name, tolerance, tuple(rows))


@dataclass(frozen=True)
class _Tap:
    """A value of the graph, and the place in PyTorch where the same tensor is."""

    value: str
    place: tuple[str, str]  # a module's path, and TAKES or GIVES; the output's name and RESULT
    size: int  # bytes


def _taps(component: Component, graph: Graph, feeds: Mapping[str, NDArray], depth: int | None) -> list[_Tap]:
    """Every tensor that both sides have, in PyTorch's order."""
    calls = Counter[tuple[str, str]]()
    seen: list[tuple[str, str, int]] = []

    def note(path: str, side: str, tensor: torch.Tensor, level: int) -> None:
        calls[path, side] += 1
        if depth is None or level <= depth:
            seen.append((path, side, tensor.nbytes))

    with _watched(component.module, note):
        results = component.engine()(**feeds)
    taps: dict[str, _Tap] = {}
    for path, side, size in seen:
        value = (graph.gives if side == GIVES else graph.takes).get(path)
        if value is not None and calls[path, side] == 1:  # of several calls, the graph does not say which is which
            taps.setdefault(value, _Tap(value, (path, side), size))
    if not taps:
        raise LdmrtError(
            component.name,
            "the nodes are not named after the checkpoint's modules",
            expected=", ".join([path for path, side in calls if side == GIVES][:3]),
            found=", ".join(node.name for node in graph.proto.graph.node[:3]),
            hint="export into a new folder",
        )
    for name, array in results.items():
        taps.setdefault(name, _Tap(name, (name, RESULT), array.nbytes))
    return list(taps.values())


def _slices(taps: list[_Tap], at_once: int | None) -> Iterator[list[_Tap]]:
    part: list[_Tap] = []
    for tap in taps:
        full = sum(t.size for t in part) + tap.size > HELD if at_once is None else len(part) == at_once
        if part and full:
            yield part
            part = []
        part.append(tap)
    if part:
        yield part


def _pytorch(component: Component, feeds: Mapping[str, NDArray], part: list[_Tap]) -> dict[str, NDArray]:
    values = {tap.place: tap.value for tap in part}
    kept: dict[str, torch.Tensor] = {}

    def keep(path: str, side: str, tensor: torch.Tensor, level: int) -> None:
        if (path, side) in values:
            kept[values[path, side]] = tensor.detach()

    with _watched(component.module, keep):
        results = component.engine()(**feeds)
    return {t.value: results[t.value] if t.place[1] == RESULT else kept[t.value].numpy() for t in part}


@contextlib.contextmanager
def _watched(network: nn.Module, see: Watcher) -> Iterator[None]:
    """Tell of every module within the network that takes, or gives, exactly one tensor of floats."""
    running: list[str] = []

    def watch(name: str, module: nn.Module) -> list[RemovableHandle]:
        path = module_path(name)

        def before(_: nn.Module, args: object, kwargs: object) -> None:
            running.append(path)
            tell(TAKES, (args, kwargs))

        def after(_: nn.Module, args: object, output: object) -> None:
            tell(GIVES, output)
            running.pop()

        def tell(side: str, tensors: object) -> None:
            floats = list(_floats(tensors))
            if len(floats) == 1:
                see(path, side, floats[0], len(running))

        return [
            module.register_forward_pre_hook(before, prepend=True, with_kwargs=True),
            module.register_forward_hook(after),
        ]

    hooks = [hook for name, module in network.named_modules() if module_path(name) for hook in watch(name, module)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _floats(tensors: object) -> Iterator[torch.Tensor]:
    if isinstance(tensors, torch.Tensor):
        if tensors.is_floating_point():
            yield tensors
    elif isinstance(tensors, (Mapping, list, tuple)):
        for item in tensors.values() if isinstance(tensors, Mapping) else tensors:
            yield from _floats(item)


def _onnx(
    component: Component, graph: Graph, path: Path, feeds: Mapping[str, NDArray], values: Sequence[str]
) -> dict[str, NDArray]:
    """These values from ONNX Runtime: a graph that has them as its outputs, with the weights of the file at `path`."""
    import onnx

    ort = onnxruntime(component.name)
    proto = onnx.ModelProto()
    proto.CopyFrom(graph.proto)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(value) for value in values)
    options = session_options(ort)
    options.enable_cpu_mem_arena = False  # which would keep what one run needs until the session ends
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.resolve().parent))
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        kinds = {one.name: DTYPES[one.type] for one in session.get_inputs()}  # the component is in float32
        inputs = tuple(replace(spec, dtype=kinds[spec.name]) for spec in component.inputs)
        arrays = session.run(list(values), conform(component.name, inputs, feeds))
    except Exception as error:  # onnxruntime raises its own classes, none public
        raise LdmrtError(component.name, "ONNX Runtime failed", found=first_line(error)) from None
    return dict(zip(values, arrays, strict=True))


def _largest(array: NDArray) -> float:
    """Return the largest absolute value; NaN where any value is NaN."""
    return float(max(-array.min(), array.max())) if array.size else 0.0


def _difference(expected: NDArray, found: NDArray) -> float:
    """The largest, relative to the largest expected value; infinite where the shapes differ or it is not finite."""
    if expected.shape != found.shape:
        return float("inf")
    wide = np.result_type(expected, found, np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = _largest(np.subtract(found, expected, dtype=wide)) / max(_largest(expected), 1e-30)
    return difference if np.isfinite(difference) else float("inf")
