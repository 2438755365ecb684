"""Runs the engines that `ldmrt build` put into a bundle, in TensorRT or TensorRT-RTX.

Calls are those of ONNX Runtime's engine. A caller that loops can do better: `bind` the shapes once, upload, launch row
after row with outputs fed back as inputs, and download at the end; that waits for the GPU once for each image.
"""

import weakref
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.store import EngineFile, engines, find_engine, runs_on
from ldmrt.runtime.bundle.graphs import STEP
from ldmrt.runtime.errors import BundleError
from ldmrt.runtime.tensors import Array, Arrays, Bound, Shapes, bound_as, conform

from .cuda_graph import Binding
from .loaded_engine import LoadedPlan
from .refitting import OtherWeights
from .session import Session

BOUND = 8  # sets of shapes that keep their buffers; those used longest ago are freed first


class TrtEngine:
    """Runs one component of a bundle. The first call with new shapes finds, checks and loads the engine for them."""

    def __init__(self, component: str, bundle: Bundle, session: Session, weights: OtherWeights | None = None) -> None:
        """Take inputs and outputs from the manifest; no engine is loaded yet.

        Args:
            component: The component, or a graph beside one.
            bundle: The bundle that holds the engines.
            session: The library and the GPU.
            weights: Take the place of weights of every engine that is loaded, which has to be built with --refit.

        Raises:
            BundleError: The bundle has no manifest, so engines cannot be checked.
        """
        if not bundle.manifest:
            hint = "ldmrt export CHECKPOINT BUNDLE, or --backend onnxruntime"
            raise BundleError(component, f"{bundle.path} has no manifest that engines could be checked with", hint=hint)
        self.component, self._bundle, self._session, self._weights = component, bundle, session, weights
        self.inputs, self.outputs = bundle.specs(component)
        self._plans: dict[Path, LoadedPlan] = {}
        self._bindings: dict[Bound, Binding] = {}
        self._grown: dict[tuple[Bound, frozenset[str]], Shapes] = {}
        weakref.finalize(self, session.close_later, partial(_close, self._bindings, self._plans)).atexit = False

    def find(self, shapes: Shapes) -> EngineFile:
        """Find the engine file for these shapes, without reading its plan; see `find_engine`."""
        session = self._session
        return find_engine(
            self._bundle,
            self.component,
            backend=session.backend,
            version=session.version,
            gpu=session.gpu,
            shapes=shapes,
            refit=self._weights is not None,
        )

    def bind(self, shapes: Shapes, feedback: Mapping[str, str] | None = None, most: Collection[str] = ()) -> Binding:
        """Return a binding for input shapes, an earlier one if they are among the last `BOUND` sets of shapes.

        Args:
            shapes: The shapes of all inputs.
            feedback: Outputs that every launch copies onto inputs at its end.
            most: Dimensions that are bound as large as the engine allows. One binding, and one recorded graph, then
                serves every caller that needs less.

        Raises:
            EngineNotFound: No engine fits; it states the command that builds one.
        """
        with self._session.turn:
            self._session.close_dropped()
            return self._bind(shapes, dict(feedback or {}), most)

    def _bind(self, shapes: Shapes, feedback: Mapping[str, str], most: Collection[str]) -> Binding:
        key = bound_as(shapes, feedback)
        if most:
            request = key, frozenset(most)
            if request not in self._grown:
                self._grown[request] = self._most(shapes, most)
            shapes = self._grown[request]
            key = bound_as(shapes, feedback)
        if key in self._bindings:
            self._bindings[key] = self._bindings.pop(key)
            return self._bindings[key]
        file = self.find(shapes)
        if len(self._bindings) >= BOUND:
            self._bindings.pop(next(iter(self._bindings))).close()
        self._bindings[key] = binding = Binding(self._loaded(file), shapes, feedback)
        return binding

    def _most(self, shapes: Shapes, names: Collection[str]) -> Shapes:
        """Enlarge the named dimensions of shapes to the most that the engine for them takes."""
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
            self._plans[file.folder] = LoadedPlan(self._session, file, self._bundle, self._weights)
        return self._plans[file.folder]

    def __call__(self, **arrays: Array) -> Arrays:
        """Run once and wait for the GPU once; arrays are cast to the dtypes that the graph declares."""
        feeds = conform(self.component, self.inputs, arrays)
        binding = self.bind({name: array.shape for name, array in feeds.items()})
        with binding.claim:
            binding.upload(**feeds)
            binding.owner = None
            binding.launch()
            return binding.download()

    def close(self) -> None:
        """Free everything; a later call loads again."""
        self._grown.clear()
        _close(self._bindings, self._plans)
        self._session.close_dropped()


def _close(bindings: dict[Bound, Binding], plans: dict[Path, LoadedPlan]) -> None:
    """Free bindings and the plans that they are of."""
    for binding in bindings.values():
        binding.close()
    bindings.clear()
    for plan in plans.values():
        plan.close()
    plans.clear()


def runs_fused(bundle: Bundle, session: Session, fused: bool | None) -> bool:
    """Tell whether rows run by the fused step.

    Args:
        bundle: The opened bundle.
        session: The backend and its GPU.
        fused: The user's choice. None is yes if the bundle has an engine of the fused step for this GPU.
    """
    if fused is not None or STEP not in bundle.graphs:
        return bool(fused)
    recipes = (engine.recipe for engine in engines(bundle.path) if isinstance(engine, EngineFile))
    steps = (recipe for recipe in recipes if (recipe.component, recipe.backend) == (STEP, session.backend))
    return any(runs_on(recipe, session.gpu) for recipe in steps)
