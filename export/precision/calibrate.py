"""Measures the ranges of activations that OpenVINO needs to compute in int8: by NNCF, on the rows of a recording.

NNCF is Intel's Neural Network Compression Framework. Only this file uses it: a bundle keeps what it found, as numbers.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from threading import Lock
from types import ModuleType

import numpy as np

from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.backends.openvino.api import Model, Node
from ldmrt.runtime.backends.openvino.convolutions import restore_convolutions
from ldmrt.runtime.backends.openvino.int8 import IN_INT8, WEIGHTED, between
from ldmrt.runtime.backends.openvino.islands import modules_of
from ldmrt.runtime.backends.openvino.library import openvino
from ldmrt.runtime.backends.openvino.network import read_graph
from ldmrt.runtime.backends.openvino.ranges import Range, Ranges, network_files
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.recording import Recording
from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.optional import unavailable
from ldmrt.runtime.parity.compare import requested
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.runtime.tensors import Array, Arrays, Engine

LATENTS = "sample"  # their input
MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze")  # operators that only move numbers
TELEMETRY = "openvino_telemetry"
_IMPORTING = Lock()


class CallRecorder:
    """Keeps the inputs of every call of an engine."""

    def __init__(self, engine: Engine, calls: list[Arrays]) -> None:
        """Wrap an engine; each call appends its inputs to `calls`."""
        self._engine, self._calls = engine, calls
        self.inputs, self.outputs = engine.inputs, engine.outputs

    def __call__(self, **arrays: Array) -> Arrays:
        """Run the engine and keep what it was given, in the order and the dtypes of its inputs."""
        self._calls.append({spec.name: np.array(arrays[spec.name], spec.dtype) for spec in self.inputs})
        return self._engine(**arrays)

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()


def calibrate(bundle: Bundle, reference: Recording, backend: str) -> dict[str, Ranges]:
    """Measure the ranges of what the modules of a bundle take on all recorded rows.

    Args:
        bundle: The opened bundle.
        reference: What its checkpoint computed.
        backend: A backend of OpenVINO's, which computes the rows in float32.

    Returns:
        The ranges of each component that int8 is for.

    Raises:
        LdmrtError: NNCF is not installed, or it cannot calibrate a network.
    """
    nncf()  # before minutes of work
    calls = calls_of_rows(bundle, reference, backend)
    return {
        name: Ranges(network_files(bundle, name), ranges_of(bundle, name, inputs)) for name, inputs in calls.items()
    }


def calls_of_rows(bundle: Bundle, reference: Recording, backend: str) -> dict[str, list[Arrays]]:
    """Return what each component that int8 is for is given in the rows of a recording, on the recorded latents."""
    calls: dict[str, list[Arrays]] = {name: [] for name in bundle.components if name.startswith(IN_INT8)}
    opened = open_pipeline(bundle.path, backend, check=False, fused=None)
    makers = {name: partial(_recorded, opened.engines, name, calls.get(name)) for name in opened.engines}
    pipeline, trajectory = replace(opened, engines=LazyEngines(makers)), reference.trajectory
    try:
        task = pipeline.prepare(requested(trajectory))
        for row, t in enumerate(trajectory.t.tolist()):
            task.model(trajectory.x[row], t)
    finally:
        opened.close()
    return {name: inputs for name, inputs in calls.items() if inputs}


def _recorded(engines: Mapping[str, Engine], name: str, calls: list[Arrays] | None) -> Engine:
    """Open an engine, when it is first used; keep its calls where they are asked for."""
    return engines[name] if calls is None else CallRecorder(engines[name], calls)


def ranges_of(bundle: Bundle, component: str, calls: Sequence[Arrays]) -> dict[str, Range]:
    """Return the ranges that NNCF chooses for the modules of a network that int8 is for, by path.

    Args:
        bundle: The opened bundle.
        component: The network.
        calls: Its inputs.

    Raises:
        LdmrtError: NNCF cannot calibrate it.
    """
    found: dict[str, Range] = {}
    for node, path in modules_of(by_nncf(bundle, component, calls)):
        if node.get_type_name() in WEIGHTED and (ends := _range_before(node)) is not None:
            low, high = found.get(path, ends)
            found[path] = min(low, ends[0]), max(high, ends[1])
    return found


def by_nncf(bundle: Bundle, component: str, calls: Sequence[Arrays]) -> Model:
    """Let NNCF quantise a network: the inputs and weights of the modules that int8 is for.

    NNCF would also scale channels of linear layers (SmoothQuant) and move biases. The first suits the recorded prompt
    and harms images of others, and the second gains hardly anything, so neither is used.
    """
    library, graph = nncf(), read_graph(component, bundle.model(component))
    restore_convolutions(graph)
    chosen = set(between(graph, LATENTS))
    others = [node for node, path in modules_of(graph) if node.get_type_name() in WEIGHTED and path not in chosen]
    kinds = {node.get_type_name() for node in graph.get_ops()} & {"Add", "Interpolate", "ScaledDotProductAttention"}
    ignored = library.IgnoredScope([node.get_friendly_name() for node in others], types=sorted(kinds), validate=False)
    try:
        made: Model = library.quantize(
            graph,
            library.Dataset(calls),
            preset=library.QuantizationPreset.MIXED,
            subset_size=len(calls),
            model_type=library.ModelType.TRANSFORMER,
            ignored_scope=ignored,
            advanced_parameters=library.AdvancedQuantizationParameters(
                disable_bias_correction=True,
                smooth_quant_alphas=library.AdvancedSmoothQuantParameters(matmul=-1),
            ),
        )
    except Exception as error:  # of many classes
        problem, hint = f"NNCF cannot calibrate {component}", "--compute bf16"
        raise LdmrtError(component, problem, found=first_line(error), hint=hint) from None
    return made


def _range_before(node: Node) -> Range | None:
    """Return the range that NNCF rounds a module's input to; None where it does not."""
    source = node.input_value(0).get_node()
    while source.get_type_name() in MOVES:
        source = source.input_value(0).get_node()
    if source.get_type_name() != "FakeQuantize":
        return None
    low, high = (float(source.input_value(index).get_node().data.item()) for index in (1, 2))
    return low, high


def nncf() -> ModuleType:
    """Import NNCF without the package that would report each call to its makers.

    Raises:
        LdmrtError: The package is not installed, or does not work.
    """
    openvino("int8")
    with _IMPORTING:
        hidden = "nncf" not in sys.modules and TELEMETRY not in sys.modules
        if hidden:
            sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # NNCF then goes on without it
        try:
            import nncf as library
        except (ImportError, OSError) as error:
            raise unavailable(error, "int8") from None
        finally:
            if hidden:
                del sys.modules[TELEMETRY]
    library.set_log_level(logging.ERROR)
    return library
