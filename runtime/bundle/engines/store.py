"""Engines on disk: engines/KEY/engine.plan, and beside it engine.json, which states the recipe.

A plan is code that a GPU library runs, and the library may crash on a plan that is not its own. So every fault of a
plan is found here, before the library sees a byte of it.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.contents import check_inside
from ldmrt.runtime.errors import BundleError, EngineNotFound, LdmrtError
from ldmrt.runtime.files.reading import JsonObject, read_json, sha256
from ldmrt.runtime.files.writing import remove_abandoned, write_atomically
from ldmrt.runtime.tensors import Shapes, whole

from .build_command import build_command
from .engine_key import REFIT, Bucket, Recipe, described
from .targets import PORTABLE, RTX_PORTABLE, TITLES

FOLDER, PLAN, SIDECAR = "engines", "engine.plan", "engine.json"
SCHEMA = 1
CHANGED = f"{PLAN} was changed"
BYTES = {"scratch", "weights", "build_peak"}  # the measurements that are numbers of bytes


@dataclass(frozen=True)
class EngineFile:
    """An engine in a bundle, as its sidecar describes it."""

    folder: Path
    recipe: Recipe
    size: int  # of the plan, bytes
    sha256: str
    measured: JsonObject = field(default_factory=dict)  # while it was built

    @classmethod
    def open(cls, folder: Path) -> "EngineFile":
        """Read the sidecar and compare the plan's size with it; the plan itself is not read.

        Raises:
            BundleError: The engine is unfinished, or was cut off, renamed or edited.
        """
        name = f"engine {folder.name}"
        if not os.path.lexists(folder / SIDECAR):
            raise BundleError(name, f"has no {SIDECAR}: it was never finished")
        for file in (SIDECAR, PLAN):
            check_inside(folder.parent.parent, folder / file, name)
        engine = cls._from_sidecar(folder, name)
        if engine.recipe.key != folder.name:
            raise BundleError(name, "was renamed or edited", expected=engine.recipe.key)
        if not (folder / PLAN).is_file():
            raise BundleError(name, f"has no {PLAN}")
        if (size := (folder / PLAN).stat().st_size) != engine.size:
            raise BundleError(name, f"{PLAN} was cut off or changed", expected=f"{engine.size} bytes", found=size)
        return engine

    @classmethod
    def _from_sidecar(cls, folder: Path, name: str) -> "EngineFile":
        unreadable = BundleError(name, f"cannot read its {SIDECAR}")
        try:
            stored = read_json(name, folder / SIDECAR)
        except LdmrtError:
            raise unreadable from None
        if (schema := stored.get("schema")) != SCHEMA:
            raise BundleError(name, "its sidecar has another schema", expected=SCHEMA, found=f"{schema!r:.100}")
        try:
            recipe, plan, measured = Recipe.from_json(stored["recipe"]), stored["plan"], dict(stored["measured"])
            for key in measured.keys() & BYTES:
                whole(measured[key] or 0)
            return cls(folder, recipe, whole(plan["size"]), str(plan["sha256"]), measured)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise unreadable from None

    @property
    def written(self) -> int:
        """Return when the sidecar was written, in nanoseconds."""
        return (self.folder / SIDECAR).stat().st_mtime_ns

    @property
    def damaged(self) -> bool:
        """Tell whether the plan's file differs from the one that was built."""
        return sha256(self.folder / PLAN) != self.sha256

    def read(self, bundle: Bundle) -> bytes:
        """Read the plan.

        Raises:
            BundleError: The bytes that were read are not those that were built.
        """
        plan = (self.folder / PLAN).read_bytes()
        if hashlib.sha256(plan).hexdigest() != self.sha256:
            raise BundleError(f"engine {self.folder.name}", CHANGED, hint=rebuild(bundle, self.recipe))
        return plan

    def bucket(self, shapes: Shapes) -> int | None:
        """Return the number of the optimization profile that holds these input shapes; None if there is none."""
        for number, bucket in enumerate(self.recipe.profile):
            if all(name in shapes and limits.holds(tuple(shapes[name])) for name, limits in bucket.items()):
                return number
        return None


@dataclass(frozen=True)
class Need:
    """Everything that an engine must match to run a component here, for inputs of these shapes."""

    backend: str
    version: str  # of the library
    gpu: str
    graph: str  # SHA-256, as in `Recipe`
    weights: str
    precision: str
    shapes: Shapes
    refit: bool = False  # whether its weights are to be replaced

    def faults(self, engine: EngineFile) -> list[tuple[int, str]]:
        """List why an engine does not fit, each with its rank: from another GPU (0) to no refit (6)."""
        recipe, title = engine.recipe, TITLES[self.backend]
        checks = (
            (runs_on(recipe, self.gpu), f"was made for {recipe.target}, not for {self.gpu}"),
            (recipe.version == self.version, f"was made by {title} {recipe.version}, not {self.version}"),
            (recipe.graph == self.graph, "was made of another graph"),
            (recipe.weights == self.weights, "was made of other weights"),
            (recipe.precision == self.precision, f"was made in {recipe.precision}"),
            (engine.bucket(self.shapes) is not None, _misfit(recipe.profile, self.shapes)),
            (REFIT in recipe.flags or not self.refit, "was built without --refit"),
        )
        return [(rank, fault) for rank, (holds, fault) in enumerate(checks) if not holds]

    def nearness(self, engine: EngineFile) -> tuple[int, int, str]:
        """Order engines that do not fit: an engine is nearer the later its first fault is and the fewer it has."""
        faults = self.faults(engine)
        return faults[0][0], -len(faults), engine.folder.name


def write_engine(folder: Path, recipe: Recipe, plan: bytes | memoryview, measured: Mapping[str, object]) -> EngineFile:
    """Write an engine whole or not at all: the sidecar is removed first and written last.

    Args:
        folder: The bundle's folder of engines.
        recipe: The engine's recipe, which also names its folder.
        plan: The serialised engine; the library's own host memory is not copied.
        measured: What was measured while it was built, for the sidecar.
    """
    place = folder / recipe.key
    (place / SIDECAR).unlink(missing_ok=True)
    for other in folder.iterdir() if folder.is_dir() else ():
        remove_abandoned(other)  # left by builds that were killed
    view = memoryview(plan).cast("B")
    with write_atomically(place / PLAN) as file:
        file.write(view)
    engine = EngineFile(place, recipe, len(view), hashlib.sha256(view).hexdigest(), dict(measured))
    stored = {
        "schema": SCHEMA,
        "recipe": recipe.to_json(),
        "plan": {"size": engine.size, "sha256": engine.sha256},
        "measured": engine.measured,
    }
    with write_atomically(place / SIDECAR) as file:
        file.write(json.dumps(stored, indent=1).encode())
    return engine


def engines(bundle: Path) -> Iterator[EngineFile | LdmrtError]:
    """Yield all engines of a bundle; for one that cannot be used, the error that says why."""
    for folder in sorted(path for path in (bundle / FOLDER).glob("*") if path.is_dir() and path.name[:1] != "."):
        engine: EngineFile | LdmrtError
        try:
            engine = EngineFile.open(folder)
        except LdmrtError as error:
            engine = error
        yield engine


def readable_engines(bundle: Bundle, component: str, backend: str) -> tuple[list[EngineFile], list[LdmrtError]]:
    """Return a component's engines for a backend, and the errors of its engines that cannot be read."""
    every = list(engines(bundle.path))
    readable = [engine for engine in every if isinstance(engine, EngineFile)]
    errors = [engine for engine in every if isinstance(engine, LdmrtError)]
    return (
        [engine for engine in readable if (engine.recipe.component, engine.recipe.backend) == (component, backend)],
        [error for error in errors if error.where.startswith(f"engine {component}-")],
    )


def model_digests(bundle: Bundle, component: str) -> tuple[str, str]:
    """Return the SHA-256 of a component's graph and of its weights, from the manifest where the bundle has one."""
    listed = bundle.manifest.get("files", {})

    def digest(path: Path) -> str:
        entry = listed.get(path.relative_to(bundle.path).as_posix())
        return str(entry["sha256"]) if entry else sha256(path)

    weights = "".join(f"{path.name} {digest(path)}\n" for path in bundle.weights(component))
    return digest(bundle.model(component)), hashlib.sha256(weights.encode()).hexdigest()


def runs_on(recipe: Recipe, gpu: str) -> bool:
    """Tell whether an engine runs on a GPU such as "sm89". Portable engines are for Ampere and later."""
    if recipe.target != PORTABLE:
        return recipe.target == gpu
    return gpu in RTX_PORTABLE if recipe.backend == "tensorrt-rtx" else int(gpu.removeprefix("sm")) >= 80


def find_engine(
    bundle: Bundle, component: str, *, backend: str, version: str, gpu: str, shapes: Shapes, refit: bool = False
) -> EngineFile:
    """Find the engine of a component for this backend, GPU and these input shapes. No plan is read.

    An engine for this very GPU comes before a portable one, of those the narrowest, and of its kind the newest, which
    may differ in its flags.

    Args:
        bundle: The bundle that holds the engines.
        component: The component, or a graph beside one.
        backend: A backend of `TITLES`.
        version: The version of the backend's library, in full: an engine is only for the version that built it.
        gpu: The GPU, such as "sm89".
        shapes: The shapes of all inputs.
        refit: Whether its weights are to be replaced.

    Raises:
        EngineNotFound: No engine fits. It states the first fault of the nearest one, and the command that builds one.
    """
    need = Need(backend, version, gpu, *model_digests(bundle, component), bundle.precision(component), shapes, refit)
    readable, broken = readable_engines(bundle, component, backend)
    if fitting := [engine for engine in readable if not need.faults(engine)]:
        return min(fitting, key=lambda one: (one.recipe.target == PORTABLE, one.recipe.width, -one.written))
    hint = build_command(bundle, component, backend, gpu, shapes)
    hint = with_refit(hint) if refit else hint
    if readable:
        nearest = max(readable, key=need.nearness)
        _, fault = need.faults(nearest)[0]
        raise EngineNotFound(component, f"engine {nearest.folder.name} {fault}", hint=hint)
    if broken:
        raise EngineNotFound(component, f"{broken[0].where} {broken[0].problem}", hint=hint)
    raise EngineNotFound(component, f"no engine for {TITLES[backend]} {version} on {gpu}", hint=hint)


def rebuild(bundle: Bundle, recipe: Recipe) -> str:
    """Write the command that builds an engine again, with its flags."""
    shapes = {name: limits.opt for name, limits in recipe.profile[0].items()}
    command = build_command(bundle, recipe.component, recipe.backend, recipe.target, shapes)
    if recipe.weights_on_gpu is not None:
        command += f" --weight-streaming {recipe.weights_on_gpu:g}"
    if recipe.builder_level is not None:
        command += f" --builder-level {recipe.builder_level}"
    return with_refit(command) if REFIT in recipe.flags else command


def with_refit(command: str) -> str:
    """Return the command of a build that keeps weights replaceable."""
    return command if command.endswith(" --refit") else f"{command} --refit"


def _misfit(profile: tuple[Bucket, ...], shapes: Shapes) -> str:
    """Compare a profile with the shape of the largest input that none of its buckets holds."""
    outside = [
        {name for name, limits in bucket.items() if not limits.holds(tuple(shapes.get(name, ())))} for bucket in profile
    ]
    unfit = set.intersection(*outside) or set(profile[0])
    name = max((name for name in profile[0] if name in unfit), key=lambda name: len(profile[0][name].max))
    shape = "x".join(map(str, shapes.get(name, ()))) or "nothing"
    limits = described(tuple({name: bucket[name]} for bucket in profile))
    return f"takes {limits}, not {shape} as {name}"
