"""Open the networks that LoRAs change, with other weights.

ONNX Runtime takes them as inputs of a session that all sets of LoRAs share. TensorRT loads an engine for each set, and
replaces its weights before anything runs in it.
"""

from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

from ldmrt.runtime.backends.ort.replaceable import open_replaceable
from ldmrt.runtime.backends.replaceable import has_refittable
from ldmrt.runtime.bundle.graphs import STEP
from ldmrt.runtime.tensors import Array, Arrays, Engine

from .graph_weights import GraphWeights
from .networks import Graph
from .source import Source

if TYPE_CHECKING:
    from ldmrt.runtime.backends.ort.engine import OrtEngine

TENSORRT = "tensorrt"


class ChangedNetworks:
    """Opens graphs of a bundle with other weights. Threads may share it."""

    def __init__(self, source: Source) -> None:
        """Open nothing yet."""
        self._source = source
        self._sessions = [session for session in source.sessions if session.backend == TENSORRT]
        self._graphs: dict[str, Graph] = {}
        self._opened: dict[tuple[str, int], OrtEngine] = {}
        self._opening = Lock()

    def takes(self, name: str) -> bool:
        """Tell whether a graph can be opened; the fused step by an engine alone, as it has no inputs for weights."""
        return name != STEP or any(has_refittable(self._source.bundle, each, STEP) for each in self._sessions)

    def graph(self, name: str) -> Graph:
        """Return the weights of a graph."""
        with self._opening:
            if name not in self._graphs:
                self._graphs[name] = Graph(GraphWeights.read(name, self._source.bundle.model(name)))
            return self._graphs[name]

    def open(self, name: str, weights: Arrays, level: int) -> Engine:
        """Open a graph.

        Args:
            name: The graph.
            weights: What takes the place of its constants, by their names.
            level: Of `stored.LEVELS`, which of the constants are inputs in ONNX Runtime.
        """
        in_onnxruntime = partial(self._in_onnxruntime, name, weights, level)
        if not self._sessions:
            return in_onnxruntime()
        from ldmrt.runtime.backends.auto import AutoEngine
        from ldmrt.runtime.backends.trt.engine import TrtEngine
        from ldmrt.runtime.backends.trt.refitting import OtherWeights

        other = OtherWeights(weights, partial(self._constant, name))
        built = [TrtEngine(name, self._source.bundle, session, other) for session in self._sessions]
        if self._source.backend == TENSORRT:
            return built[0]
        return AutoEngine(name, built, None if name == STEP else in_onnxruntime)

    def _constant(self, graph: str, name: str) -> Array | None:
        """Return a constant of a graph by its name."""
        constant = self.graph(graph).weights.initialisers.get(name)
        return None if constant is None else constant.read()

    def _in_onnxruntime(self, name: str, weights: Arrays, level: int) -> Engine:
        """Open a graph in the session whose constants of a level are inputs."""
        graph, source = self.graph(name), self._source
        with self._opening:
            if (name, level) not in self._opened:
                stored = [each for each in graph.parameters.values() if each.level <= level]
                inputs = graph.weights.as_inputs(one.name for each in stored for one in each.constants)
                session = open_replaceable(source.bundle, source.backend, source.threads, name, inputs)
                self._opened[name, level] = session
            return self._opened[name, level].given(weights)

    def free(self) -> None:
        """Close the sessions of ONNX Runtime; the next network that is opened opens them again."""
        with self._opening:
            for session in self._opened.values():
                session.close()
            self._opened.clear()
