"""The fastest engine that is there: one that was built for this GPU and these shapes, else ONNX Runtime."""

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from numpy.typing import NDArray

from .bundle import CUT, Bundle
from .engine_files import BACKENDS, EngineFile, Shapes, engines, runs_on
from .engine_trt import TrtEngine
from .errors import LdmrtError, LdmrtWarning
from .specs import Engine, conform
from .trt import Session


class AutoEngine:
    """Tries `built` in order, and runs `other`, opened when it is needed, where none of them has an engine that fits
    and loads: then it warns, once for every set of shapes.
    """

    def __init__(self, component: str, built: Sequence[TrtEngine], other: Callable[[], Engine]) -> None:
        self.component, self._built, self._open_other = component, built, other
        self.inputs, self.outputs = built[0].inputs, built[0].outputs
        self._other: Engine | None = None
        self._chosen: dict[tuple[tuple[int, ...], ...], Engine] = {}

    def __call__(self, **arrays: NDArray) -> dict[str, NDArray]:
        """Run once."""
        feeds = conform(self.component, self.inputs, arrays)
        shapes = {name: array.shape for name, array in feeds.items()}
        key = tuple(shapes.values())
        if key not in self._chosen:
            self._chosen[key] = self._choose(shapes)
        return self._chosen[key](**feeds)

    def _choose(self, shapes: Shapes) -> Engine:
        faults = []
        for one in self._built:
            if (fault := _fault(one, shapes)) is None:
                return one
            faults.append(fault)
        told = f"{faults[0].where}: {faults[0].problem}; it runs on ONNX Runtime; next: {faults[0].hint}"
        warnings.warn(told, LdmrtWarning, stacklevel=3)
        if self._other is None:
            self._other = self._open_other()
        return self._other

    def close(self) -> None:
        """Free all that was opened."""
        for one in (*self._built, *([self._other] if self._other is not None else [])):
            one.close()
        self._chosen.clear()
        self._other = None


def _fault(engine: TrtEngine, shapes: Shapes) -> LdmrtError | None:
    """Why an engine cannot run these shapes."""
    try:
        engine.bind(shapes)
    except LdmrtError as error:
        return error
    return None


def sessions(bundle: Bundle) -> list[Session]:
    """The backends that have an engine here for this machine's GPU, TensorRT before TensorRT-RTX."""
    recipes = [one.recipe for one in engines(bundle.path) if isinstance(one, EngineFile)] if bundle.manifest else []
    found = []
    for backend in BACKENDS:
        if mine := [one for one in recipes if one.backend == backend]:
            with contextlib.suppress(LdmrtError):  # no such library, or no GPU
                session = Session(backend)
                found += [session] if any(runs_on(one, session.gpu) for one in mine) else []
    return found


def makers(bundle: Bundle, other: Mapping[str, Callable[[], Engine]]) -> dict[str, Callable[[], Engine]]:
    """What opens each component of a bundle; `other` is how to open it on ONNX Runtime. The U-Net cut in two, of which
    no engines are built, is left out beside engines: on a CPU it would be no shortcut.
    """
    if not (found := sessions(bundle)):
        return dict(other)

    def auto(name: str) -> AutoEngine:
        return AutoEngine(name, [TrtEngine(name, bundle, session) for session in found], other[name])

    kept = {name: make for name, make in other.items() if name not in CUT}
    return {name: partial(auto, name) if name in bundle.components else make for name, make in kept.items()}
