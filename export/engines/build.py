"""Engines of a bundle: which are there, which have to be built and why, and building them one by one.

Each engine that is done stands for itself, so a build that was stopped or killed goes on where it was.
"""

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.engine_key import REFIT, Recipe
from ldmrt.runtime.bundle.engines.store import CHANGED, FOLDER, EngineFile, engines, write_engine
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.lock import bundle_lock

from .compiler import Compiled, Watch, compile_engine
from .refit import DIGEST, weights_sha256

Compiler = Callable[[Path, Recipe, Watch], Compiled]
REPORT_EVERY = 0.1  # seconds between two words about one engine


@dataclass(frozen=True)
class Decision:
    """Holds what is to be done about one engine. It is reused where there is nothing to do."""

    recipe: Recipe
    there: EngineFile | None
    why: str = ""
    before: bool = False  # there was one for the same use

    @property
    def name(self) -> str:
        """Name the engine in messages."""
        return self.recipe.component


@dataclass(frozen=True)
class Step:
    """How far the build of an engine is: of its phase, from 0 to 1."""

    recipe: Recipe
    phase: str
    done: float


@dataclass(frozen=True)
class Built:
    """An engine that is now there."""

    recipe: Recipe
    engine: EngineFile
    reused: bool
    seconds: float = field(default=0.0)


def decide(bundle: Path, recipes: Sequence[Recipe]) -> list[Decision]:
    """Decide for each recipe whether its engine is reused or built, and why. A plan must have its recorded SHA-256."""
    keys = {one.key for one in recipes}
    good, bad = dict[str, EngineFile](), dict[str, str]()
    for one in engines(bundle):
        if isinstance(one, LdmrtError):
            bad[one.where.removeprefix("engine ")] = one.problem
        elif one.folder.name in keys and one.damaged:
            bad[one.folder.name] = CHANGED
        else:
            good[one.folder.name] = one
    return [_decide(recipe, good, bad) for recipe in recipes]


def _decide(recipe: Recipe, good: dict[str, EngineFile], bad: dict[str, str]) -> Decision:
    if recipe.key in good:
        return Decision(recipe, good[recipe.key])
    if recipe.key in bad:
        return Decision(recipe, None, f"the old one {bad[recipe.key]}", before=True)
    others = [one.recipe for one in good.values() if one.recipe.component == recipe.component]
    if not others:
        return Decision(recipe, None, "no engine yet")

    def distance(other: Recipe) -> tuple[bool, bool, bool, int]:
        elsewhere = (other.backend != recipe.backend, other.target != recipe.target, other.profile != recipe.profile)
        return *elsewhere, len(other.changes(recipe))

    nearest = min(others, key=distance)
    return Decision(recipe, None, ", ".join(nearest.changes(recipe)), before=not any(distance(nearest)[:3]))


def summary(decisions: Sequence[Decision]) -> str:
    """Describe decisions in a line: "rebuilding unet: TensorRT 10.16 -> 11.4; text_encoder and vae_decoder reused"."""
    several = len({one.recipe.target for one in decisions}) > 1
    groups: dict[str, list[str]] = {}
    for one in decisions:
        what = "" if one.there else f"{'rebuilding' if one.before else 'building'} {{}}: {one.why}"
        name = f"{one.name} for {one.recipe.target}" if several else one.name
        groups.setdefault(what, []).append(name)
    reused = groups.pop("", [])
    parts = [what.replace("{}", listed(names), 1) for what, names in groups.items()]
    return "; ".join([*parts, f"{listed(reused)} reused"] if reused else parts)


def listed(names: Sequence[str]) -> str:
    """Join names with commas and "and"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def build(bundle: Bundle, decisions: Sequence[Decision], compiler: Compiler = compile_engine) -> Iterator[Step | Built]:
    """Build engines, and yield progress and each engine. Leaving the loop stops the build; finished engines stay.

    Args:
        bundle: It is locked while the loop runs.
        decisions: As `decide` returns them.
        compiler: It builds one engine.

    Yields:
        A `Step` at most every `REPORT_EVERY` seconds, and a `Built` for every engine.

    Raises:
        LdmrtError: The bundle has changed since it was opened, or an engine cannot be built.
    """
    with bundle_lock(bundle.path):
        bundle.check_unchanged()
        yield from _build(bundle, decisions, compiler)


def _build(bundle: Bundle, decisions: Sequence[Decision], compiler: Compiler) -> Iterator[Step | Built]:
    for one in decisions:
        if one.there is not None:
            yield Built(one.recipe, one.there, reused=True)
            continue
        begin = time.perf_counter()
        compiled = yield from _watched(partial(compiler, bundle.model(one.name), one.recipe), one.recipe)
        measured: dict[str, int | float | str | None] = {
            "scratch": compiled.scratch,
            "weights": compiled.weights,
            "build_peak": compiled.grown,
            "seconds": round(compiled.seconds, 3),
        }
        if REFIT in one.recipe.flags:  # also proves that it can be
            measured[DIGEST] = weights_sha256(one.recipe, compiled.plan, bundle.model(one.name))
        engine = write_engine(bundle.path / FOLDER, one.recipe, compiled.plan, measured)
        del compiled  # the plan would lie in memory while the next one is made
        yield Built(one.recipe, engine, reused=False, seconds=time.perf_counter() - begin)


def _watched(run: Callable[[Watch], Compiled], recipe: Recipe) -> Generator[Step, None, Compiled]:
    """Run a compiler in a thread and yield its steps; the generator's value is what it returns."""
    said: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
    stop, result, told = threading.Event(), list[Compiled](), [0.0]
    failed: list[BaseException] = []

    def watch(phase: str, done: float) -> bool:
        now = time.monotonic()
        if now - told[0] >= REPORT_EVERY:
            told[0] = now
            said.put(Step(recipe, phase, done))
        return not stop.is_set()

    def work() -> None:
        try:
            result.append(run(watch))
        except BaseException as error:  # raised again by whoever waits for it
            failed.append(error)
        finally:
            said.put(None)

    thread = threading.Thread(target=work, name=f"build {recipe.component}")
    thread.start()
    try:
        while (step := said.get()) is not None:
            yield step
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]
    return result[0]
