"""ONNX Runtime's inputs and outputs of one set of shapes, kept where the session computes."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.tensors import Shapes, TensorSpec, shape_of, sizes_of

from .library import onnxruntime

UNRECORDED = -1  # as ONNX Runtime numbers what is no CUDA graph


def run_options(graph: int, wait: bool = True) -> Any:
    """Of a run that is recorded as the CUDA graph of this number, or replays it; it need not be waited for."""
    options = onnxruntime("backend").RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    options.add_run_config_entry("disable_synchronize_execution_providers", str(int(not wait)))
    return options


class OrtBinding:
    """Upload, launch as often as you like, download: what lies on the device stays there in between, where it is.

    An output that is fed back and the input that takes it are two buffers that change places with every launch. So
    there are two kinds of launches, each of buffers that never move: the first and the second of `graphs`, the numbers
    that ONNX Runtime records them under. Who asks the device for anything but to wait holds `turn`.
    """

    def __init__(
        self, component: str, session: Any, device: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec],
        shapes: Shapes, feedback: Mapping[str, str], graphs: tuple[int, int], turn: AbstractContextManager[object],
    ) -> None:  # fmt: skip
        ort = onnxruntime(component)
        self.shapes = shapes
        self.owner: object = None
        self.claim = RLock()  # who uploads, launches and downloads what belongs together holds it
        self._component, self._session, self._turn = component, session, turn
        self._outputs, self._feedback = [spec.name for spec in outputs], feedback
        self._dtypes = {spec.name: spec.dtype for spec in inputs}
        sizes = {name: n for spec in inputs for name, n in sizes_of(spec, shapes[spec.name]).items()}

        def buffer(spec: TensorSpec, shape: tuple[int, ...]) -> Any:
            return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.dtype(spec.dtype), device)

        self._given = {spec.name: buffer(spec, tuple(shapes[spec.name])) for spec in inputs}
        made = {spec.name: buffer(spec, shape_of(spec, sizes)) for spec in outputs}
        back = {target: output for output, target in feedback.items()}
        changed_given = {name: made[back[name]] if name in back else one for name, one in self._given.items()}
        changed_made = {name: self._given[feedback[name]] if name in feedback else one for name, one in made.items()}
        self._made = made, changed_made
        self._bound = self._bind(self._given, made), self._bind(changed_given, changed_made)
        self._options = [run_options(graph, wait=False) for graph in graphs]
        self._launched = 0

    def _bind(self, given: Mapping[str, Any], made: Mapping[str, Any]) -> Any:
        bound = self._session.io_binding()
        for name, value in given.items():
            bound.bind_ortvalue_input(name, value)
        for name, value in made.items():
            bound.bind_ortvalue_output(name, value)
        return bound

    def upload(self, **arrays: NDArray) -> None:
        """Upload inputs. Those that are omitted stay as they are, but for what is fed back: all of that, or nothing."""
        if fed := set(self._feedback.values()).intersection(arrays):
            if missing := set(self._feedback.values()) - fed:
                raise LdmrtError(self._component, f"no input {min(missing)}", found=", ".join(sorted(fed)))
            self._launched = 0
        for name, array in arrays.items():
            with self._turn:
                self._given[name].update_inplace(np.ascontiguousarray(array, self._dtypes[name]))

    def launch(self) -> None:
        """Run the bound network once."""
        turn = self._launched % 2
        try:
            with self._turn:
                self._session.run_with_iobinding(self._bound[turn], self._options[turn])
        except Exception as error:
            raise LdmrtError(self._component, "ONNX Runtime failed", found=first_line(error)) from None
        self._launched += 1

    def download(self, *names: str) -> dict[str, NDArray]:
        """Outputs of the last launch, all where none is named, as arrays of their own. Waits for it."""
        last = (self._launched - 1) % 2
        self._bound[last].synchronize_outputs()
        with self._turn:
            return {name: self._made[last][name].numpy().copy() for name in names or self._outputs}
