"""Engines on disk: engines/KEY/engine.plan, and beside it engine.json, which says what the engine was made of.

A plan is code that a GPU library runs, and that library may crash on one that is not its own. So everything that can be
wrong with a plan is found here, before its bytes are handed to anybody.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.contents import check_inside
from ldmrt.runtime.errors import EngineNotFound, LdmrtError
from ldmrt.runtime.files.reading import read_json, sha256
from ldmrt.runtime.files.writing import remove_abandoned, write_atomically
from ldmrt.runtime.tensors import Shapes, whole

from .build_command import build_command
from .recipe import BACKENDS, PORTABLE, RTX_PORTABLE, Bucket, Recipe, described

FOLDER, PLAN, SIDECAR = "engines", "engine.plan", "engine.json"
SCHEMA = 1
CHANGED = f"{PLAN} was changed"
BYTES = {"scratch", "weights", "build_peak"}  # of what is measured


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


def write_engine(folder: Path, recipe: Recipe, plan: Any, measured: Mapping[str, Any]) -> EngineFile:
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


def find_engine(bundle: Bundle, component: str, *, backend: str, version: str, gpu: str, shapes: Shapes) -> EngineFile:
    """Find the engine of a component for this backend, GPU and these input shapes: the GPU's own before a portable one,
    then the narrowest. No plan is read.

    Raises `EngineNotFound`, which says what is wrong with the one that comes nearest, and how to mend it.
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
    hint = build_command(bundle, component, backend, gpu, shapes)
    if refused:
        *_, name, fault = max(refused)
        raise EngineNotFound(component, f"engine {name} {fault}", hint=hint)
    if broken:
        raise EngineNotFound(component, f"{broken[0].where} {broken[0].problem}", hint=hint)
    raise EngineNotFound(component, f"no engine for {BACKENDS[backend]} {version} on {gpu}", hint=hint)


def rebuild(bundle: Bundle, recipe: Recipe) -> str:
    """The command that builds an engine again."""
    shapes = {name: one.opt for name, one in recipe.profile[0].items()}
    return build_command(bundle, recipe.component, recipe.backend, recipe.target, shapes)


def _misfit(profile: tuple[Bucket, ...], shapes: Shapes) -> str:
    """What a profile takes of the largest input that none of its buckets holds, and what it is given."""
    buckets = [{name: one for name, one in b.items() if not one.holds(tuple(shapes.get(name, ())))} for b in profile]
    unfit = set(buckets[0]).intersection(*buckets[1:]) or set(profile[0])
    name = max((name for name in profile[0] if name in unfit), key=lambda one: len(profile[0][one].max))
    given = "x".join(map(str, shapes.get(name, ()))) or "nothing"
    taken = described(tuple({name: bucket[name]} for bucket in profile))
    return f"takes {taken}, not {given} as {name}"
