"""The fastest engine that is there: one that was built for this GPU and these shapes, else ONNX Runtime."""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from threading import Lock

from numpy.typing import NDArray

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.recipe import BACKENDS
from ldmrt.runtime.bundle.engines.store import EngineFile, engines, runs_on
from ldmrt.runtime.bundle.graphs import STEP
from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.runtime.tensors import Engine, Shapes, conform

from .trt.binding import Binding
from .trt.engine import TrtEngine, folds
from .trt.session import Session


class AutoEngine:
    """Tries `built` in order, and runs `other`, opened when it is needed, where none of them has an engine that fits
    and loads: then it warns, once for every set of shapes. Without `other` the first one's fault is an `LdmrtError`.
    """

    def __init__(self, component: str, built: Sequence[TrtEngine], other: Callable[[], Engine] | None) -> None:
        self.component, self._built, self._open_other = component, built, other
        self.inputs, self.outputs = built[0].inputs, built[0].outputs
        self._other: Engine | None = None
        self._chosen: dict[tuple[tuple[int, ...], ...], Engine] = {}
        self._choosing = Lock()

    def __call__(self, **arrays: NDArray) -> dict[str, NDArray]:
        """Run the engine that fits the shapes once."""
        feeds = conform(self.component, self.inputs, arrays)
        shapes = {name: array.shape for name, array in feeds.items()}
        key = tuple(shapes.values())
        with self._choosing:
            if key not in self._chosen:
                self._chosen[key] = self._choose(shapes)
            chosen = self._chosen[key]
        return chosen(**feeds)

    def bind(self, shapes: Shapes, feedback: Mapping[str, str], most: Collection[str] = ()) -> Binding:
        """The first of `built` that fits and loads, made ready; an `LdmrtError` where none does."""
        return self._first(shapes, feedback, most)[1]

    def _first(
        self, shapes: Shapes, feedback: Mapping[str, str] | None = None, most: Collection[str] = ()
    ) -> tuple[TrtEngine, Binding]:
        faults = []
        for one in self._built:
            made = _attempt(one, shapes, feedback, most)
            if not isinstance(made, LdmrtError):
                return one, made
            faults.append(made)
        raise faults[0]

    def _choose(self, shapes: Shapes) -> Engine:
        try:
            return self._first(shapes)[0]
        except LdmrtError as fault:
            if self._open_other is None:
                raise
            told = f"{fault.where}: {fault.problem}; it runs on ONNX Runtime; next: {fault.hint}"
        warnings.warn(told, LdmrtWarning, stacklevel=3)
        if self._other is None:
            self._other = self._open_other()
        return self._other

    def close(self) -> None:
        """Close every engine that was opened."""
        for one in (*self._built, *([self._other] if self._other is not None else [])):
            one.close()
        self._chosen.clear()
        self._other = None


def _attempt(
    engine: TrtEngine, shapes: Shapes, feedback: Mapping[str, str] | None, most: Collection[str]
) -> Binding | LdmrtError:
    """What an engine makes ready for these shapes, or why it cannot run them."""
    try:
        return engine.bind(shapes, feedback, most)
    except LdmrtError as error:
        return error


def sessions(bundle: Bundle) -> list[Session]:
    """The backends that have an engine here for this machine's GPU, TensorRT before TensorRT-RTX."""
    return [one for one in _tried(bundle) if isinstance(one, Session)]


def unused_engines(bundle: Bundle) -> str:
    """Return why none of a bundle's engines can run here; empty where one can, or where there are none."""
    there = list(engines(bundle.path)) if bundle.manifest else []
    tried = list(_tried(bundle))
    if not there or any(isinstance(one, Session) for one in tried):
        return ""
    broken = [f"{one.where} {one.problem}" for one in there if isinstance(one, LdmrtError)]
    why = [str(one) for one in tried] or broken[:1]
    return f"{len(there)} engine{'s' if len(there) > 1 else ''} cannot run here: {'; '.join(why)}"


def _tried(bundle: Bundle) -> Iterator[Session | str]:
    """For each backend that has engines in a bundle, its session on this machine's GPU, or why they cannot run."""
    recipes = [one.recipe for one in engines(bundle.path) if isinstance(one, EngineFile)] if bundle.manifest else []
    for backend, title in BACKENDS.items():
        if mine := [one for one in recipes if one.backend == backend]:
            try:
                session = Session(backend)
            except LdmrtError as error:  # no such library, or no GPU
                yield error.problem
                continue
            targets = ", ".join(sorted({one.target for one in mine}))
            fits = any(runs_on(one, session.gpu) for one in mine)
            yield session if fits else f"{title}: they were built for {targets}, and this GPU is {session.gpu}"


def makers(
    bundle: Bundle, other: Mapping[str, Callable[[], Engine]], folded: bool | None
) -> dict[str, Callable[[], Engine]]:
    """What opens each graph of a bundle; `other` is how to open it on ONNX Runtime. Where engines run, a folded step
    that has none that fits gives way to the loop, whose U-Net may have one. The U-Net cut in two, of which no
    engines are built, is left out beside engines: on a CPU it would be no shortcut.
    """
    if not (found := sessions(bundle)):
        if why := unused_engines(bundle):
            warnings.warn(f"backend auto takes ONNX Runtime, as {why}", LdmrtWarning, stacklevel=2)
        return dict(other)

    def auto(name: str) -> AutoEngine:
        built = [TrtEngine(name, bundle, session) for session in found]
        return AutoEngine(name, built, None if name == STEP else other[name])

    steps = (STEP,) if any(folds(bundle, session, folded) for session in found) else ()
    return {name: partial(auto, name) for name in (*bundle.components, *steps)}
