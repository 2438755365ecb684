"""ONNX Runtime's inputs and outputs of one set of shapes, kept where the session computes."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from threading import RLock

import numpy as np

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.tensors import Array, Arrays, Shape, Shapes, TensorSpec, shape_of, sizes_of

from .api import IoBinding, OrtValue, RunOptions, Session
from .library import onnxruntime

UNRECORDED = -1  # ONNX Runtime's number for a run without a CUDA graph


def run_options(graph: int, wait: bool = True) -> RunOptions:
    """Make the options of a run.

    Args:
        graph: The number of the CUDA graph that the run is recorded as, or replays.
        wait: Let the run return only when it is done.
    """
    options: RunOptions = onnxruntime("backend").RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    options.add_run_config_entry("disable_synchronize_execution_providers", str(int(not wait)))
    return options


class OrtBinding:
    """Upload, launch as often as you like, download: tensors stay on the device in between.

    An output that is fed back and the input that takes it are two buffers that change places with every launch. So
    there are two kinds of launches, even and odd ones, each with buffers that never move.
    """

    def __init__(
        self,
        component: str,
        session: Session,
        device: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        shapes: Shapes,
        feedback: Mapping[str, str],
        graphs: tuple[int, int],
        turn: AbstractContextManager[object],
    ) -> None:
        """Allocate the buffers.

        Args:
            component: The component that errors name.
            session: The session that runs the graph.
            device: "cpu" or "cuda".
            inputs: The inputs of the graph.
            outputs: Its outputs.
            shapes: The shapes of the inputs.
            feedback: Outputs that the next launch takes as inputs.
            graphs: The numbers of the CUDA graphs of even and of odd launches, or `UNRECORDED`.
            turn: A lock that every call to the device holds, unless it only waits.
        """
        ort = onnxruntime(component)
        self.shapes = shapes
        self.owner: object = None
        self.claim = RLock()  # held by a caller while it uploads, launches and downloads
        self._component, self._session, self._turn = component, session, turn
        self._names, self._feedback = [spec.name for spec in outputs], feedback
        self._dtypes = {spec.name: spec.dtype for spec in inputs}
        sizes = {name: n for spec in inputs for name, n in sizes_of(spec, shapes[spec.name]).items()}

        def buffer(spec: TensorSpec, shape: Shape) -> OrtValue:
            value: OrtValue = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.dtype(spec.dtype), device)
            return value

        self._inputs = {spec.name: buffer(spec, tuple(shapes[spec.name])) for spec in inputs}
        even = {spec.name: buffer(spec, shape_of(spec, sizes)) for spec in outputs}
        source = {target: output for output, target in feedback.items()}
        odd_inputs = {name: even[source[name]] if name in source else value for name, value in self._inputs.items()}
        odd = {name: self._inputs[feedback[name]] if name in feedback else value for name, value in even.items()}
        self._outputs = even, odd
        self._bound = self._bind(self._inputs, even), self._bind(odd_inputs, odd)
        self._options = [run_options(graph, wait=False) for graph in graphs]
        self._launched = 0

    def _bind(self, inputs: Mapping[str, OrtValue], outputs: Mapping[str, OrtValue]) -> IoBinding:
        bound = self._session.io_binding()
        for name, value in inputs.items():
            bound.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            bound.bind_ortvalue_output(name, value)
        return bound

    def upload(self, **arrays: Array) -> None:
        """Upload inputs; others keep their values. Inputs that outputs are fed back to are uploaded together or not."""
        if fed := set(self._feedback.values()).intersection(arrays):
            if missing := set(self._feedback.values()) - fed:
                raise LdmrtError(self._component, f"no input {min(missing)}", found=", ".join(sorted(fed)))
            self._launched = 0
        for name, array in arrays.items():
            with self._turn:
                self._inputs[name].update_inplace(np.ascontiguousarray(array, self._dtypes[name]))

    def launch(self) -> None:
        """Run the bound network once."""
        parity = self._launched % 2
        try:
            with self._turn:
                self._session.run_with_iobinding(self._bound[parity], self._options[parity])
        except Exception as error:
            raise LdmrtError(self._component, "ONNX Runtime failed", found=first_line(error)) from None
        self._launched += 1

    def download(self, *names: str) -> Arrays:
        """Wait for the last launch and return copies of its outputs, of all if none is named."""
        last = (self._launched - 1) % 2
        self._bound[last].synchronize_outputs()
        with self._turn:
            return {name: self._outputs[last][name].numpy().copy() for name in names or self._names}
