"""What an engine is made of: the graph and weights, the library, the GPU, and the shapes that it takes."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ldmrt.runtime.bundle.contents import is_name
from ldmrt.runtime.tensors import Shape, whole

BACKENDS = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
PORTABLE = "portable"
# What TensorRT-RTX compiles a portable engine for. Its targets end at consumer cards: Hopper and the like are none.
RTX_PORTABLE = ("sm80", "sm86", "sm89", "sm120", "sm121")
RTX_TARGETS = ("sm75", *RTX_PORTABLE)
TARGET = re.compile(rf"sm[0-9]{{2,3}}|{PORTABLE}")


@dataclass(frozen=True)
class Range:
    """What an input's shape may be, and for which one the engine is fastest."""

    min: Shape
    opt: Shape
    max: Shape

    def holds(self, shape: Shape) -> bool:
        """Whether a shape lies within the range."""
        return len(shape) == len(self.min) and all(
            least <= n <= most for least, n, most in zip(self.min, shape, self.max, strict=True)
        )

    def __str__(self) -> str:
        return "x".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(self.min, self.max, strict=True))


Bucket = Mapping[str, Range]  # by input


@dataclass(frozen=True)
class Recipe:
    """All that an engine is made of. Equal recipes make engines that can stand in for each other."""

    component: str
    graph: str  # SHA-256 of the ONNX file
    weights: str  # of what stands beside it
    precision: str
    backend: str  # of BACKENDS
    version: str  # the library's, in full
    target: str  # "sm89", or "portable"
    profile: tuple[Bucket, ...]
    flags: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Return the name of the engine's folder."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return f"{self.component}-{self.target}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as it stands in the sidecar."""
        buckets = [{name: [list(r.min), list(r.opt), list(r.max)] for name, r in b.items()} for b in self.profile]
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        return plain | {"profile": buckets, "flags": list(self.flags)}

    @property
    def plain_profile(self) -> list[dict[str, dict[str, list[int]]]]:
        """The profile in lists and dicts: of each bucket the least, best and largest shape of every input."""
        return [
            {name: {"min": list(one.min), "opt": list(one.opt), "max": list(one.max)} for name, one in bucket.items()}
            for bucket in self.profile
        ]

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Recipe":
        """The inverse; KeyError, TypeError or ValueError where it is none."""
        buckets = tuple(
            {name: Range(*(tuple(map(whole, shape)) for shape in shapes)) for name, shapes in bucket.items()}
            for bucket in stored["profile"]
        )
        words = {one.name: str(stored[one.name]) for one in fields(cls) if one.name not in ("profile", "flags")}
        known = words["backend"] in BACKENDS and TARGET.fullmatch(words["target"]) and is_name(words["component"])
        ordered = all(r.holds(r.min) and r.holds(r.opt) for b in buckets for r in b.values())
        if not (known and buckets and all(buckets) and ordered and isinstance(stored["flags"], list)):
            raise ValueError("no recipe")
        return cls(**words, profile=buckets, flags=tuple(map(str, stored["flags"])))

    def changes(self, new: "Recipe") -> list[str]:
        """Say what differs from another recipe: "TensorRT 10.16 -> 11.4"."""
        said = []
        if self.backend != new.backend:
            said.append(f"{BACKENDS[self.backend]} -> {BACKENDS[new.backend]} {new.version}")
        elif self.version != new.version:
            said.append(f"{BACKENDS[self.backend]} {self.version} -> {new.version}")
        files = {"graph": self.graph != new.graph, "weights": self.weights != new.weights}
        said += [f"its {what} changed" for what, is_so in files.items() if is_so]
        for name in ("precision", "target"):
            if getattr(self, name) != getattr(new, name):
                said.append(f"{name} {getattr(self, name)} -> {getattr(new, name)}")
        if self.profile != new.profile:
            here, there = (_unlike(*pair) for pair in ((self.profile, new.profile), (new.profile, self.profile)))
            said.append(f"profile {described(here)} -> {described(there)}")
        if self.flags != new.flags:
            said.append(f"flags {', '.join(self.flags) or 'none'} -> {', '.join(new.flags) or 'none'}")
        return said


def described(profile: tuple[Bucket, ...]) -> str:
    """A profile in a few characters: the largest input of each bucket."""
    return ", ".join(str(max(bucket.values(), key=lambda one: len(one.max))) for bucket in profile)


def _unlike(profile: tuple[Bucket, ...], other: tuple[Bucket, ...]) -> tuple[Bucket, ...]:
    """A profile's buckets, with those inputs alone that another profile has otherwise, where it is as long."""
    if len(profile) != len(other):
        return profile
    names = {name for one, two in zip(profile, other, strict=True) for name in one if one[name] != two.get(name)}
    return tuple({name: one[name] for name in one if name in names} for one in profile)
