"""The recipe of an engine: its graph and weights, the library, the GPU, and the input shapes that it takes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields

from ldmrt.runtime.bundle.contents import is_name
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.tensors import Shape, whole

from .targets import TARGET, TITLES

# Flags of engines: that their weights can be replaced, the share of the weights that stays on the GPU while the rest is
# streamed from the host, and how long TensorRT looks for kernels.
REFIT, WEIGHTS_ON_GPU, BUILDER_LEVEL = "refit", "weights on gpu ", "builder level "
BUILDER_LEVELS = range(6)


@dataclass(frozen=True)
class Range:
    """The smallest and the largest shape of an input, and the shape for which the engine is fastest."""

    min: Shape
    opt: Shape
    max: Shape

    def holds(self, shape: Shape) -> bool:
        """Tell whether a shape lies within the range."""
        return len(shape) == len(self.min) and all(
            least <= n <= most for least, n, most in zip(self.min, shape, self.max, strict=True)
        )

    def __str__(self) -> str:
        """Write the range as in "1-4x77"."""
        return "x".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(self.min, self.max, strict=True))


Bucket = Mapping[str, Range]  # by input


@dataclass(frozen=True)
class Recipe:
    """Everything that an engine is made of. Engines of equal recipes can replace each other."""

    component: str
    graph: str  # SHA-256 of the ONNX file
    weights: str  # SHA-256 over the component's weight files
    precision: str
    backend: str  # of TITLES
    version: str  # the library's, in full
    target: str  # "sm89", or "portable"
    profile: tuple[Bucket, ...]
    flags: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Return the name of the engine's folder."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return f"{self.component}-{self.target}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    @property
    def width(self) -> int:
        """Return the sum of the largest dimensions of the first bucket: a narrower engine has a smaller one."""
        return sum(sum(limits.max) for limits in self.profile[0].values())

    @property
    def weights_on_gpu(self) -> float | None:
        """Return the share of the weights that stays on the GPU, from 0 to 1; None of an engine that streams none."""
        return _number(self.flags, WEIGHTS_ON_GPU)

    @property
    def builder_level(self) -> int | None:
        """Return how long TensorRT looked for kernels, of `BUILDER_LEVELS`; None where that was left to it."""
        level = _number(self.flags, BUILDER_LEVEL)
        return None if level is None else int(level)

    def to_json(self) -> JsonObject:
        """Return the recipe as it stands in the sidecar."""
        buckets = [{name: [list(r.min), list(r.opt), list(r.max)] for name, r in b.items()} for b in self.profile]
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"profile": buckets, "flags": list(self.flags)}

    @property
    def plain_profile(self) -> list[dict[str, dict[str, list[int]]]]:
        """Return the profile in lists and dicts: for each bucket the min, opt and max shape of every input."""
        return [
            {name: {"min": list(r.min), "opt": list(r.opt), "max": list(r.max)} for name, r in bucket.items()}
            for bucket in self.profile
        ]

    @classmethod
    def from_json(cls, stored: JsonObject) -> "Recipe":
        """Read the output of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: `stored` is not a recipe.
        """
        buckets = tuple(
            {name: Range(*(tuple(map(whole, shape)) for shape in shapes)) for name, shapes in bucket.items()}
            for bucket in stored["profile"]
        )
        names = [field.name for field in fields(cls) if field.name not in ("profile", "flags")]
        texts = {name: str(stored[name]) for name in names}
        known = texts["backend"] in TITLES and TARGET.fullmatch(texts["target"]) and is_name(texts["component"])
        ordered = all(r.holds(r.min) and r.holds(r.opt) for b in buckets for r in b.values())
        if not (known and buckets and all(buckets) and ordered and isinstance(stored["flags"], list)):
            raise ValueError("no recipe")
        recipe = cls(**texts, profile=buckets, flags=tuple(map(str, stored["flags"])))
        share, level = recipe.weights_on_gpu, recipe.builder_level
        if not (share is None or 0 <= share <= 1) or not (level is None or level in BUILDER_LEVELS):
            raise ValueError("no recipe")
        return recipe

    def changes(self, new: "Recipe") -> list[str]:
        """List the differences to another recipe, such as "TensorRT 10.16 -> 11.4"."""
        lines = []
        if self.backend != new.backend:
            lines.append(f"{TITLES[self.backend]} -> {TITLES[new.backend]} {new.version}")
        elif self.version != new.version:
            lines.append(f"{TITLES[self.backend]} {self.version} -> {new.version}")
        files = {"graph": self.graph != new.graph, "weights": self.weights != new.weights}
        lines += [f"its {name} changed" for name, differs in files.items() if differs]
        for name in ("precision", "target"):
            if getattr(self, name) != getattr(new, name):
                lines.append(f"{name} {getattr(self, name)} -> {getattr(new, name)}")
        if self.profile != new.profile:
            here, there = (_unlike(*pair) for pair in ((self.profile, new.profile), (new.profile, self.profile)))
            lines.append(f"profile {described(here)} -> {described(there)}")
        if self.flags != new.flags:
            lines.append(f"flags {', '.join(self.flags) or 'none'} -> {', '.join(new.flags) or 'none'}")
        return lines


def _number(flags: tuple[str, ...], name: str) -> float | None:
    """Return the number of the flag that begins with a name; None where there is none."""
    return next((float(flag.removeprefix(name)) for flag in flags if flag.startswith(name)), None)


def described(profile: tuple[Bucket, ...]) -> str:
    """Write a profile in a few characters: the range of the input with most dimensions, for each bucket."""
    return ", ".join(str(max(bucket.values(), key=lambda limits: len(limits.max))) for bucket in profile)


def _unlike(profile: tuple[Bucket, ...], other: tuple[Bucket, ...]) -> tuple[Bucket, ...]:
    """Keep the inputs of a profile that another one has differently; all, where it has another number of buckets."""
    if len(profile) != len(other):
        return profile
    names = {name for mine, its in zip(profile, other, strict=True) for name in mine if mine[name] != its.get(name)}
    return tuple({name: bucket[name] for name in bucket if name in names} for bucket in profile)
