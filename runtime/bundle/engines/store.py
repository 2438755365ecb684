"""Engines on disk: engines/KEY/engine.plan, and beside it engine.json, which says what the engine was made of.

A plan is code that a GPU library runs, and that library may crash on one that is not its own. So everything that can be
wrong with a plan is found here, before its bytes are handed to anybody.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.contents import check_inside, is_name
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import read_json, sha256
from ldmrt.runtime.files.writing import remove_abandoned, write_atomically
from ldmrt.runtime.tensors import Shape, Shapes, whole

from .build_command import mend
from .targets import BACKENDS, PORTABLE, RTX_PORTABLE

FOLDER, PLAN, SIDECAR = "engines", "engine.plan", "engine.json"
SCHEMA = 1
CHANGED = f"{PLAN} was changed"
TARGET = re.compile(rf"sm[0-9]{{2,3}}|{PORTABLE}")
BYTES = {"scratch", "weights", "build_peak"}  # of what is measured


class NoEngine(LdmrtError):
    """No engine of a bundle is for this backend, GPU and these shapes."""


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


@dataclass(frozen=True)
class EngineFile:
    """An engine that stands in a bundle, as its sidecar describes it."""

    folder: Path
    recipe: Recipe
    size: int  # of the plan, bytes
    sha256: str
    measured: Mapping[str, Any] = field(default_factory=dict)  # while it was built

    @classmethod
    def open(cls, folder: Path) -> "EngineFile":
        """Read the sidecar and look at the plan from outside; an `LdmrtError` where one was cut off or renamed."""
        name = f"engine {folder.name}"
        if not os.path.lexists(folder / SIDECAR):
            raise LdmrtError(name, f"has no {SIDECAR}: it was never finished")
        for file in (SIDECAR, PLAN):
            check_inside(folder.parent.parent, folder / file, name)
        opened = cls._from_sidecar(folder, name)
        if opened.recipe.key != folder.name:
            raise LdmrtError(name, "was renamed or edited", expected=opened.recipe.key)
        if not (folder / PLAN).is_file():
            raise LdmrtError(name, f"has no {PLAN}")
        if (found := (folder / PLAN).stat().st_size) != opened.size:
            raise LdmrtError(name, f"{PLAN} was cut off or changed", expected=f"{opened.size} bytes", found=found)
        return opened

    @classmethod
    def _from_sidecar(cls, folder: Path, name: str) -> "EngineFile":
        unreadable = LdmrtError(name, f"cannot read its {SIDECAR}")
        try:
            stored = read_json(name, folder / SIDECAR)
        except LdmrtError:
            raise unreadable from None
        if (schema := stored.get("schema")) != SCHEMA:
            raise LdmrtError(name, "its sidecar has another schema", expected=SCHEMA, found=f"{schema!r:.100}")
        try:
            recipe, plan, measured = Recipe.from_json(stored["recipe"]), stored["plan"], dict(stored["measured"])
            for key in measured.keys() & BYTES:
                whole(measured[key] or 0)
            return cls(folder, recipe, whole(plan["size"]), str(plan["sha256"]), measured)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise unreadable from None

    @property
    def damaged(self) -> bool:
        """Whether the plan's file differs from the one that was built."""
        return sha256(self.folder / PLAN) != self.sha256

    def read(self, bundle: Bundle) -> bytes:
        """The plan; an `LdmrtError` where the very bytes that would be returned are not those that were built."""
        plan = (self.folder / PLAN).read_bytes()
        if hashlib.sha256(plan).hexdigest() != self.sha256:
            raise LdmrtError(f"engine {self.folder.name}", CHANGED, hint=rebuild(bundle, self.recipe))
        return plan

    def bucket(self, shapes: Shapes) -> int | None:
        """The number of the optimization profile that holds these shapes of its inputs."""
        for number, bucket in enumerate(self.recipe.profile):
            if all(name in shapes and one.holds(tuple(shapes[name])) for name, one in bucket.items()):
                return number
        return None


def write(folder: Path, recipe: Recipe, plan: Any, measured: Mapping[str, Any]) -> EngineFile:
    """Put an engine into the bundle's `folder` of engines. Whatever happens, it is there whole or it is not there: the
    sidecar goes first and comes last.
    """
    place = folder / recipe.key
    (place / SIDECAR).unlink(missing_ok=True)
    for other in folder.iterdir() if folder.is_dir() else ():
        remove_abandoned(other)  # what builds that were killed have left
    view = memoryview(plan).cast("B")
    with write_atomically(place / PLAN) as file:
        file.write(view)
    made = EngineFile(place, recipe, len(view), hashlib.sha256(view).hexdigest(), measured)
    stored = {
        "schema": SCHEMA,
        "recipe": recipe.to_json(),
        "plan": {"size": made.size, "sha256": made.sha256},
        "measured": dict(measured),
    }
    with write_atomically(place / SIDECAR) as file:
        file.write(json.dumps(stored, indent=1).encode())
    return made


def engines(bundle: Path) -> Iterator[EngineFile | LdmrtError]:
    """All in a bundle; for one that cannot be used, why."""
    for folder in sorted(path for path in (bundle / FOLDER).glob("*") if path.is_dir() and path.name[:1] != "."):
        one: EngineFile | LdmrtError
        try:
            one = EngineFile.open(folder)
        except LdmrtError as error:
            one = error
        yield one


def model_digests(bundle: Bundle, component: str) -> tuple[str, str]:
    """SHA-256 of a component's graph and of its weights: the manifest's, where there is one."""
    listed = bundle.manifest.get("files", {})

    def digest(path: Path) -> str:
        entry = listed.get(path.relative_to(bundle.path).as_posix())
        return str(entry["sha256"]) if entry else sha256(path)

    weights = "".join(f"{path.name} {digest(path)}\n" for path in bundle.weights(component))
    return digest(bundle.model(component)), hashlib.sha256(weights.encode()).hexdigest()


def runs_on(recipe: Recipe, gpu: str) -> bool:
    """Was an engine made for this GPU, "sm89"? Portable ones are for Ampere and what came after it."""
    if recipe.target != PORTABLE:
        return recipe.target == gpu
    return gpu in RTX_PORTABLE if recipe.backend == "tensorrt-rtx" else int(gpu.removeprefix("sm")) >= 80


def find(bundle: Bundle, component: str, *, backend: str, version: str, gpu: str, shapes: Shapes) -> EngineFile:
    """The engine of a component for this backend, GPU and these input shapes; the GPU's own before a portable one, then
    the narrowest. A `NoEngine` says what is wrong with the one that comes nearest, and how to mend it. Nothing of
    any plan is read.
    """
    graph, weights = model_digests(bundle, component)
    fit, refused, broken = [], [], []
    for one in engines(bundle.path):
        if isinstance(one, LdmrtError):
            broken += [one] if one.where.startswith(f"engine {component}-") else []
            continue
        recipe = one.recipe
        if recipe.component != component or recipe.backend != backend:
            continue
        # From what rebuilding cannot mend to what it can: the engine with the latest first fault comes nearest.
        faults = {
            f"was made for {recipe.target}, not for {gpu}": not runs_on(recipe, gpu),
            f"was made by {BACKENDS[backend]} {recipe.version}, not {version}": recipe.version != version,
            "was made of another graph": recipe.graph != graph,
            "was made of other weights": recipe.weights != weights,
            f"was made in {recipe.precision}": recipe.precision != bundle.precision(component),
            _misfit(recipe.profile, shapes): one.bucket(shapes) is None,
        }
        found = [(place, fault) for place, (fault, is_so) in enumerate(faults.items()) if is_so]
        if found:
            refused.append((found[0][0], -len(found), one.folder.name, found[0][1]))
        else:
            fit.append((recipe.target == PORTABLE, sum(sum(r.max) for r in recipe.profile[0].values()), one))
    if fit:
        return min(fit, key=lambda row: row[:2])[2]
    hint = mend(bundle, component, backend, gpu, shapes)
    if refused:
        *_, name, fault = max(refused)
        raise NoEngine(component, f"engine {name} {fault}", hint=hint)
    if broken:
        raise NoEngine(component, f"{broken[0].where} {broken[0].problem}", hint=hint)
    raise NoEngine(component, f"no engine for {BACKENDS[backend]} {version} on {gpu}", hint=hint)


def rebuild(bundle: Bundle, recipe: Recipe) -> str:
    """The command that builds an engine again."""
    shapes = {name: one.opt for name, one in recipe.profile[0].items()}
    return mend(bundle, recipe.component, recipe.backend, recipe.target, shapes)


def _misfit(profile: tuple[Bucket, ...], shapes: Shapes) -> str:
    """What a profile takes of the largest input that none of its buckets holds, and what it is given."""
    buckets = [{name: one for name, one in b.items() if not one.holds(tuple(shapes.get(name, ())))} for b in profile]
    unfit = set(buckets[0]).intersection(*buckets[1:]) or set(profile[0])
    name = max((name for name in profile[0] if name in unfit), key=lambda one: len(profile[0][one].max))
    given = "x".join(map(str, shapes.get(name, ()))) or "nothing"
    taken = described(tuple({name: bucket[name]} for bucket in profile))
    return f"takes {taken}, not {given} as {name}"
