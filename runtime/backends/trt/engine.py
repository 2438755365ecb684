"""TensorRT and TensorRT-RTX as engines: what `ldmrt build` put into a bundle, on the GPU.

Calls are those of ONNX Runtime's engine. A caller who loops can do better: `bind` the shapes once, upload, launch row
after row with outputs fed back as inputs, and download at the end; that waits for the GPU once an image.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

from numpy.typing import NDArray

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.store import EngineFile, engines, find_engine, runs_on
from ldmrt.runtime.bundle.graphs import STEP
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.tensors import Bound, Shapes, bound_as, conform

from .binding import Binding
from .loaded_engine import LoadedPlan
from .session import Session

BOUND = 8  # sets of shapes that stay ready; the one that was used longest ago goes first


class TrtEngine:
    """One component of a bundle. The engine file for the shapes of a call is looked up, checked and loaded at the first
    call with them; an `LdmrtError` says which command builds one that is missing.
    """

    def __init__(self, component: str, bundle: Bundle, session: Session) -> None:
        if not bundle.manifest:
            hint = "ldmrt export CHECKPOINT BUNDLE, or --backend onnxruntime"
            raise LdmrtError(component, f"{bundle.path} has no manifest that engines could be checked with", hint=hint)
        self.component, self._bundle, self._session = component, bundle, session
        self.inputs, self.outputs = bundle.specs(component)
        self._plans: dict[Path, LoadedPlan] = {}
        self._bindings: dict[Bound, Binding] = {}
        self._grown: dict[tuple[Bound, frozenset[str]], Shapes] = {}

    def find(self, shapes: Shapes) -> EngineFile:
        """The engine file for these shapes, from outside; an `LdmrtError` where none fits."""
        one = self._session
        return find_engine(
            self._bundle, self.component, backend=one.backend, version=one.version, gpu=one.gpu, shapes=shapes
        )

    def bind(self, shapes: Shapes, feedback: Mapping[str, str] | None = None, most: Collection[str] = ()) -> Binding:
        """Make ready for input shapes, or come back to what was made ready: of the last `BOUND` sets of shapes.
        `feedback` names outputs that every launch copies onto inputs. Of the dimensions named in `most` it binds as
        many as the engine takes: one binding, and one recorded graph, then serves all who need fewer.
        """
        with self._session.turn:
            return self._bind(shapes, dict(feedback or {}), most)

    def _bind(self, shapes: Shapes, fed: Mapping[str, str], most: Collection[str]) -> Binding:
        key = bound_as(shapes, fed)
        if most:
            asked = key, frozenset(most)
            if asked not in self._grown:
                self._grown[asked] = self._most(shapes, most)
            shapes = self._grown[asked]
            key = bound_as(shapes, fed)
        if key in self._bindings:
            self._bindings[key] = self._bindings.pop(key)
            return self._bindings[key]
        file = self.find(shapes)
        if len(self._bindings) >= BOUND:
            self._bindings.pop(next(iter(self._bindings))).close()
        self._bindings[key] = made = Binding(self._loaded(file), shapes, fed)
        return made

    def _most(self, shapes: Shapes, names: Collection[str]) -> Shapes:
        """The same shapes, but of the named dimensions the most that the engine for them holds."""
        file = self.find(shapes)
        bucket = file.recipe.profile[file.bucket(shapes) or 0]
        return {
            spec.name: tuple(
                largest if dim in names else n
                for dim, n, largest in zip(spec.shape, shapes[spec.name], bucket[spec.name].max, strict=True)
            )
            for spec in self.inputs
        }

    def _loaded(self, file: EngineFile) -> LoadedPlan:
        if file.folder not in self._plans:
            self._plans[file.folder] = LoadedPlan(self._session, file, self._bundle)
        return self._plans[file.folder]

    def __call__(self, **arrays: NDArray) -> dict[str, NDArray]:
        """Run once; arrays are cast to the dtypes that the graph declares. Waits for the GPU once."""
        feeds = conform(self.component, self.inputs, arrays)
        binding = self.bind({name: array.shape for name, array in feeds.items()})
        binding.upload(**feeds)
        binding.launch()
        return binding.download()

    def close(self) -> None:
        """Free everything. A later call loads again."""
        for binding in self._bindings.values():
            binding.close()
        self._bindings.clear()
        self._grown.clear()
        for plan in self._plans.values():
            plan.close()
        self._plans.clear()


def folds(bundle: Bundle, session: Session, folded: bool | None) -> bool:
    """Whether rows shall run by the folded step: as it was asked for, else where it has an engine for this GPU."""
    if folded is not None or STEP not in bundle.graphs:
        return bool(folded)
    recipes = (one.recipe for one in engines(bundle.path) if isinstance(one, EngineFile))
    mine = (one for one in recipes if (one.component, one.backend) == (STEP, session.backend))
    return any(runs_on(one, session.gpu) for one in mine)
