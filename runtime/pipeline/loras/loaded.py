"""Keep the LoRAs that a pipeline has loaded, and networks with their weights.

The weights that LoRAs change are computed anew for every set of LoRAs from those in the bundle, so a set gives the same
bytes whatever came before it. What reads files and graphs is imported with the first LoRA.
"""

import math
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.graphs import STEP
from ldmrt.runtime.errors import InvalidRequest, LdmrtError
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.tensors import Arrays, Engine

from .names import NAME, unknown
from .source import Source

if TYPE_CHECKING:
    from ldmrt.runtime.files.lora.placing import Layers, Network
    from ldmrt.runtime.files.lora.reading import Lora, Step

    from .changed_networks import ChangedNetworks
    from .stored import Stored

KEPT = 2  # sets of LoRAs whose weights stay in memory
Weights = Mapping[str, float]  # of LoRAs by name
Active = tuple[tuple[str, float], ...]  # names and weights that change a network, in the order of the names


@dataclass(frozen=True)
class Loaded:
    """Holds a file that was loaded, and its layers by component and module."""

    lora: "Lora"
    layers: "Layers" = field(repr=False)

    @cached_property
    def has_norms(self) -> bool:
        """Whether it has DoRA's norms, which change a weight even at a factor of 0."""
        return any(layer.magnitude is not None for layer in self.layers.values())


class Loras:
    """Holds the LoRAs of a pipeline. Threads may share it."""

    def __init__(self, source: Source | None = None) -> None:
        """Start without any; a pipeline that was opened from no bundle loads none."""
        self._source, self._loaded, self._weights = source, dict[str, Loaded](), dict[str, float]()
        self._networks: dict[str, Network] = {}
        self._changed_networks: ChangedNetworks | None = None
        self._sets: OrderedDict[Active, LazyEngines] = OrderedDict()
        self._changing = Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of those that are loaded."""
        return tuple(self._loaded)

    @property
    def weights(self) -> Weights:
        """The weights that a request takes which states none."""
        return dict(self._weights)

    def record(self, names: Collection[str]) -> JsonObject:
        """Return the file and the hashes of some that are loaded, by name."""
        loras = {name: self._loaded[name].lora for name in names}
        return {
            name: {"file": lora.name, "sha256": lora.sha256, "content_sha256": lora.content_sha256}
            for name, lora in loras.items()
        }

    def load(self, path: Path, name: str | None) -> str:
        """Load a file, and return its name; nothing changes where that fails."""
        from ldmrt.runtime.backends.replaceable import check_refittable, check_replaceable
        from ldmrt.runtime.files.lora.placing import placed
        from ldmrt.runtime.files.lora.reading import open_lora

        from .changed_networks import ChangedNetworks
        from .networks import HINT, adaptable

        lora = open_lora(path)
        name = path.stem if name is None else name
        if not NAME.fullmatch(name):
            raise LdmrtError(
                "lora", f"a LoRA cannot be called {name!r:.100}", expected="a name without <, >, : and commas"
            )
        with self._changing:
            if name in self._loaded:
                raise LdmrtError("lora", f"{name} is loaded already", hint=f"unload_lora({name!r}), or another name")
            if self._source is None:
                raise LdmrtError("lora", "this pipeline has no bundle", hint="ldmrt.runtime.open(BUNDLE)")
            source = self._source
            check_replaceable(source.bundle, source.backend, source.sessions, low_memory=source.low_memory)
            self._networks = self._networks or adaptable(source.bundle)
            layers = placed(lora.name, lora.layers, self._networks, HINT)
            if source.backend == "tensorrt":
                check_refittable(source.bundle, source.sessions[0], {component for component, _ in layers})
            self._changed_networks = self._changed_networks or ChangedNetworks(source)
            self._loaded[name] = Loaded(lora, layers)
        return name

    def unload(self, name: str) -> None:
        """Forget one."""
        with self._changing:
            self._check({name: 0.0})
            del self._loaded[name]
            self._weights.pop(name, None)
            self._sets.clear()
            for session in self._source.sessions if self._source is not None else ():
                session.close_dropped()

    def set(self, weights: Weights) -> None:
        """Choose the weights that a request takes which states none; those that are not named have none."""
        with self._changing:
            self._weights = self._check(weights)

    def chosen(self, weights: Weights | None) -> dict[str, float]:
        """Return the weights of a request: those that it states, or else those that were set.

        Raises:
            InvalidRequest: One is not loaded, or its weight is no finite number.
        """
        return dict(self._weights) if weights is None else self._check(weights)

    def _check(self, weights: Weights) -> dict[str, float]:
        """Refuse unknown names and invalid weights."""
        for name, weight in weights.items():
            if name not in self._loaded:
                raise unknown(name, self.names)
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
                problem = f"the weight of {name} is no number"
                raise InvalidRequest("lora", problem, expected="a finite number", found=f"{weight!r:.100}")
        return {name: float(weight) for name, weight in weights.items()}

    def engines(self, base: LazyEngines, weights: Weights) -> LazyEngines:
        """Return the engines of a pipeline with LoRAs of these weights; `base` itself where none changes anything.

        The fused step is left out where its network is changed, and the backend cannot replace its weights.
        """
        with self._changing:
            key = self.active(weights)
            if not key or self._source is None:
                return base
            if key not in self._sets:
                while len(self._sets) >= KEPT:  # a set that a request still draws with ends with it
                    self._sets.popitem(last=False)
                self._sets[key] = self._with(self._source.bundle, key)
            self._sets.move_to_end(key)
            changed = self._sets[key]
            outdated = self._source.bundle.home(STEP) in changed and STEP not in changed
        return base.replaced(changed, without=(STEP,) if outdated else ())

    def active(self, weights: Weights) -> Active:
        """Return those of these weights by which a network is changed, in the order of their names.

        Sums depend on the order in their last digits, so one set is drawn in one order.

        Raises:
            InvalidRequest: One is not loaded.
        """
        checked = sorted(self._check(weights).items())
        return tuple((name, weight) for name, weight in checked if weight or self._loaded[name].has_norms)

    def _with(self, bundle: Bundle, active: Active) -> LazyEngines:
        """Return the networks that LoRAs change, with other weights."""
        steps: dict[str, dict[str, list[Step]]] = defaultdict(lambda: defaultdict(list))
        for one, weight in ((self._loaded[name], weight) for name, weight in active):
            for (component, module), layer in one.layers.items():
                steps[component][module].append((one.lora, layer, weight))
        networks = self._changed_networks
        assert networks is not None
        homes = {name: bundle.home(name) for name in bundle.graphs if networks.takes(name)}
        return LazyEngines(
            {name: partial(self._open, networks, name, steps[home]) for name, home in homes.items() if home in steps}
        )

    def _open(self, networks: "ChangedNetworks", name: str, steps: "Mapping[str, list[Step]]") -> Engine:
        """Open a graph with its weights changed."""
        from ldmrt.runtime.backends.wrappers.packed import given_latents
        from ldmrt.runtime.backends.wrappers.text_encoder_cache import CachedTextEncoder

        weights, level = self._changed(networks.graph(name).parameters, steps)
        engine = given_latents(networks.open(name, weights, level))
        return CachedTextEncoder(engine) if name.startswith("text_encoder") else engine

    def _changed(self, parameters: "Mapping[str, Stored]", steps: "Mapping[str, list[Step]]") -> tuple[Arrays, int]:
        """Compute the constants of a graph that LoRAs change, and the level of inputs that they need."""
        from ldmrt.runtime.files.lora.reading import changed

        from .stored import KINDS, LEVELS

        weights, level = Arrays(), LEVELS[0]
        for module, layers in steps.items():
            for kind in KINDS:
                if (stored := parameters.get(f"{module}.{kind}")) is None:
                    continue
                before = stored.value()
                value = changed(before, layers, kind)
                if value is not before:
                    level = max(level, stored.level)
                    for constant, array in stored.changed(before, value).items():
                        if not np.isfinite(array).all():
                            lora, layer, _ = layers[-1]
                            raise LdmrtError("lora", f"{layer.name} of {lora.name} overflows in {array.dtype}")
                        weights[constant] = array
        return weights, level

    def free(self) -> None:
        """Close the networks; the next request with a LoRA opens them again. None may run meanwhile."""
        with self._changing:
            while self._sets:
                self._sets.popitem()[1].close()
            if self._changed_networks is not None:
                self._changed_networks.free()


class TakesLoras:
    """Loads LoRAs into a pipeline of one stage.

    Attributes:
        loras: Those that are loaded.
    """

    loras: Loras

    def load_lora(self, path: str | Path, name: str | None = None) -> str:
        """Load a safetensors file, or the one in a folder; nothing is drawn with it until it is given a weight.

        Args:
            path: The file, of kohya's scripts, LyCORIS, diffusers or PEFT.
            name: What requests and prompts call it; the file's name without its ending by default.

        Returns:
            The name.

        Raises:
            LdmrtError: The file is damaged or fits another model, or the backend replaces no weights. Nothing changed.
        """
        return self.loras.load(Path(path), name)

    def set_loras(self, weights: Weights) -> None:
        """Choose the LoRAs that requests are drawn with which state none of their own: {"style": 0.8}; {} is none.

        Raises:
            InvalidRequest: One is not loaded, or a weight is no finite number. Nothing changed.
        """
        self.loras.set(weights)

    def unload_lora(self, name: str) -> None:
        """Forget a LoRA.

        Raises:
            InvalidRequest: It is not loaded.
        """
        self.loras.unload(name)
