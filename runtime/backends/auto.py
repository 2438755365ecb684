"""Takes the fastest engine of a bundle: one that was built for this GPU and these shapes, else ONNX Runtime."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from threading import Lock

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.graphs import STEP
from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.runtime.tensors import Array, Arrays, Engine, Shape, Shapes, conform

from .trt.cuda_graph import Binding
from .trt.engine import TrtEngine, runs_fused
from .trt.session import Session
from .trt.sessions import unused_engines


class AutoEngine:
    """Runs a built engine that fits the shapes and loads, else ONNX Runtime with one warning for each set of shapes."""

    def __init__(self, component: str, built: Sequence[TrtEngine], fallback: Callable[[], Engine] | None) -> None:
        """Hold the engines of a component.

        Args:
            component: The component, or a graph beside one.
            built: The engines of each backend, in the order in which they are tried; at least one.
            fallback: Opens the graph in ONNX Runtime. Without it, the fault of the first engine is raised.
        """
        self.component, self._built, self._open_fallback = component, built, fallback
        self.inputs, self.outputs = built[0].inputs, built[0].outputs
        self._fallback: Engine | None = None
        self._chosen: dict[tuple[Shape, ...], Engine] = {}
        self._choosing = Lock()

    def __call__(self, **arrays: Array) -> Arrays:
        """Run the engine that fits the shapes once."""
        feeds = conform(self.component, self.inputs, arrays)
        shapes = {name: array.shape for name, array in feeds.items()}
        key = tuple(shapes.values())
        with self._choosing:
            if key not in self._chosen:
                self._chosen[key] = self._choose(shapes)
            engine = self._chosen[key]
        return engine(**feeds)

    def bind(self, shapes: Shapes, feedback: Mapping[str, str], most: Collection[str] = ()) -> Binding:
        """Bind the first built engine that fits and loads; see `TrtEngine.bind`.

        Raises:
            LdmrtError: None does; it states the fault of the first.
        """
        return self._first(shapes, feedback, most)[1]

    def _first(
        self, shapes: Shapes, feedback: Mapping[str, str] | None = None, most: Collection[str] = ()
    ) -> tuple[TrtEngine, Binding]:
        """Return the first built engine that fits and loads, with its binding."""
        faults = []
        for engine in self._built:
            binding = _attempt(engine, shapes, feedback, most)
            if not isinstance(binding, LdmrtError):
                return engine, binding
            faults.append(binding)
        raise faults[0]

    def _choose(self, shapes: Shapes) -> Engine:
        """Return a built engine for these shapes, else ONNX Runtime, after a warning."""
        try:
            return self._first(shapes)[0]
        except LdmrtError as fault:
            if self._open_fallback is None:
                raise
            message = f"{fault.where}: {fault.problem}; it runs on ONNX Runtime; next: {fault.hint}"
        warnings.warn(message, LdmrtWarning, stacklevel=3)
        if self._fallback is None:
            self._fallback = self._open_fallback()
        return self._fallback

    def close(self) -> None:
        """Close every engine that was opened."""
        for engine in (*self._built, *([self._fallback] if self._fallback is not None else [])):
            engine.close()
        self._chosen.clear()
        self._fallback = None


def _attempt(
    engine: TrtEngine, shapes: Shapes, feedback: Mapping[str, str] | None, most: Collection[str]
) -> Binding | LdmrtError:
    """Return an engine's binding for these shapes, or the error that says why it cannot run them."""
    try:
        return engine.bind(shapes, feedback, most)
    except LdmrtError as error:
        return error


def makers(
    bundle: Bundle, fallback: Mapping[str, Callable[[], Engine]], usable: Sequence[Session], fused: bool | None
) -> dict[str, Callable[[], Engine]]:
    """Return what opens each graph of a bundle.

    Where engines run here, a fused step without an engine that fits gives way to the loop, whose U-Net may have one.
    The halves of the U-Net for the deep cache are not among the graphs then: no engines are built of them, and on a CPU
    they would be no shortcut.

    Args:
        bundle: The opened bundle.
        fallback: Opens each graph in ONNX Runtime.
        usable: The sessions that have an engine for this GPU.
        fused: `BackendSettings.fused`.
    """
    if not usable:
        if reason := unused_engines(bundle):
            warnings.warn(f"backend auto takes ONNX Runtime, as {reason}", LdmrtWarning, stacklevel=2)
        return dict(fallback)

    def auto(name: str) -> AutoEngine:
        built = [TrtEngine(name, bundle, session) for session in usable]
        return AutoEngine(name, built, None if name == STEP else fallback[name])

    steps = (STEP,) if any(runs_fused(bundle, session, fused) for session in usable) else ()
    return {name: partial(auto, name) for name in (*bundle.components, *steps)}
