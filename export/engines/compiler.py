"""One engine from one ONNX file, by TensorRT or TensorRT-RTX through Polygraphy.

The precision is the ONNX file's: networks are strongly typed. TensorRT-RTX needs no GPU to build.
"""

import contextlib
import importlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ldmrt.runtime.backends.trt.session import MODULES
from ldmrt.runtime.bundle.engines.engine_key import BUILDER_LEVEL, REFIT, Recipe
from ldmrt.runtime.bundle.engines.targets import PORTABLE, TITLES
from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.nearest import suggestion
from ldmrt.runtime.optional import unavailable

from .resident_memory import growth
from .timing_cache import TimingCache

SWITCH = "POLYGRAPHY_USE_TENSORRT_RTX"  # Polygraphy reads it once, when it is imported

Watch = Callable[[str, float], bool]  # of a phase and how much of it is done; False stops the build


@dataclass(frozen=True)
class Compiled:
    """A plan, and what its build took: bytes and seconds."""

    plan: bytes  # or another object with the buffer protocol
    scratch: int
    weights: int
    grown: int | None  # what it added to this process at most
    seconds: float


def library(backend: str) -> Any:
    """The module of TensorRT or TensorRT-RTX, with Polygraphy bound to it."""
    try:
        module = importlib.import_module(MODULES[backend])
        rtx = backend == "tensorrt-rtx"
        if "polygraphy.config" not in sys.modules:
            os.environ[SWITCH] = "1" if rtx else "0"
        config = importlib.import_module("polygraphy.config")
    except (ImportError, OSError) as error:
        raise unavailable(error, "backend") from None
    if rtx != config.USE_TENSORRT_RTX:
        problem = "Polygraphy is bound to the other TensorRT in this process"
        raise LdmrtError("backend", problem, hint="build in a process of its own")
    return module


def version(backend: str) -> str:
    """Return the library's version in full, such as 1.7.1.116."""
    return str(library(backend).__version__)


def check_refit(backend: str, option: str) -> None:
    """Refuse to replace weights where the library cannot."""
    if backend == "tensorrt-rtx":
        problem = f"{TITLES[backend]} compiles engines with replaceable weights by CUDA, and fails where no GPU is"
        hint = "ldmrt export CHECKPOINT BUNDLE --lora FILE:WEIGHT, then build: what has not changed is reused"
        raise LdmrtError(option, problem, hint=hint)


def _no_levels(title: str) -> LdmrtError:
    """Make the error of a level for TensorRT-RTX."""
    problem = f"{title} builds the same engine at every level, as it chooses kernels at the first run"
    return LdmrtError("--builder-level", problem, expected="--backend tensorrt", hint="without it")


def check_targets(backend: str, targets: Sequence[str], flags: Sequence[str]) -> None:
    """Refuse what the library cannot build, before anything is built."""
    trt, title = library(backend), TITLES[backend]
    if backend == "tensorrt-rtx":
        if REFIT in flags:
            check_refit(backend, "--refit")
        if any(flag.startswith(BUILDER_LEVEL) for flag in flags):
            raise _no_levels(title)
        known = [name.lower() for name in trt.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name)]
        if unknown := [name for name in targets if name not in (PORTABLE, *known)]:
            expected = ", ".join([*known, PORTABLE, "this"])
            meant = "" if unknown[0].startswith("sm") else suggestion(unknown[0], [*known, PORTABLE, "this"])
            problem, hint = f"{title} has no target {unknown[0]}{meant}", "--backend tensorrt, on that GPU"
            raise LdmrtError("--target", problem, expected=expected, hint=hint)
        return
    from ldmrt.runtime.backends.gpu import compute_capability

    here = compute_capability()  # TensorRT measures its kernels on the GPU that it builds for
    if unknown := [name for name in targets if name not in (PORTABLE, here)]:
        problem = f"{title} builds for the GPU of this machine"
        raise LdmrtError("--target", problem, expected=f"{here} or {PORTABLE}", found=unknown[0])


def compile_engine(path: Path, recipe: Recipe, watch: Watch, timings: TimingCache | None = None) -> Compiled:
    """Build an engine.

    Args:
        path: The ONNX file, with its weights beside it.
        recipe: The library, the GPU and the shapes.
        watch: Called with a phase and the part of it that is done, 0 to 1; False stops the build.
        timings: Of kernels, from earlier builds; those of this one are added.

    Returns:
        The plan, with bytes and seconds that its build took.

    Raises:
        LdmrtError: The library cannot build it, or `watch` stopped it.
    """
    trt = library(recipe.backend)
    from polygraphy.backend import trt as polygraphy_trt
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    log, monitor = _logger(trt), _monitor(trt, watch)
    profiles = []
    for bucket in recipe.profile:
        profile = polygraphy_trt.Profile()
        for name, shapes in bucket.items():
            profile.add(name, shapes.min, shapes.opt, shapes.max)
        profiles.append(profile)
    begin = time.perf_counter()
    # Polygraphy keeps one logger for the process and prints what went wrong: the error below says it once.
    quiet = G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1)
    with _replaced(polygraphy_trt.util, "TRT_LOGGER", log), quiet, growth() as memory:
        try:
            typed = typed_by_request(recipe.backend, trt.__version__)
            network = polygraphy_trt.network_from_onnx_path(str(path), strongly_typed=typed)
            network = polygraphy_trt.set_decomposable_attentions(network)
            config = _config(trt, recipe, profiles, monitor)
            plan = polygraphy_trt.engine_bytes_from_network(network, config=_with_timings(config, timings))
        except PolygraphyException as error:
            if monitor.stopped:
                raise LdmrtError(recipe.component, "the build was stopped") from None
            problem = f"{TITLES[recipe.backend]} cannot build it for {recipe.target}"
            found = first_line(RuntimeError(log.errors[0]) if log.errors else error)
            raise LdmrtError(
                recipe.component, problem, found=found, hint=f"ldmrt verify {path.parent.parent}"
            ) from None
    if timings is not None:
        timings.keep()
    seconds, found = time.perf_counter() - begin, log.found
    return Compiled(plan, found["Max Scratch Memory"], found["Total Weights Memory"], memory.most, seconds)


def typed_by_request(backend: str, version: str) -> bool:
    """Return whether networks keep the precision of their ONNX file only on request.

    TensorRT 11 and TensorRT-RTX always keep it, and have no name, or no use, for the request.
    """
    return backend == "tensorrt" and int(version.partition(".")[0]) < 11


def _config(trt: Any, recipe: Recipe, profiles: list[object], monitor: object) -> object:
    common = {"profiles": profiles, "progress_monitor": monitor, "refittable": REFIT in recipe.flags}
    common |= {"weight_streaming": recipe.weights_on_gpu is not None}
    if recipe.backend == "tensorrt-rtx":
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        number = recipe.target.removeprefix("sm")
        targets = None if recipe.target == PORTABLE else [(int(number[:-1]), int(number[-1]))]
        return CreateConfigRTX(compute_capabilities=targets, **common)
    from polygraphy.backend.trt import CreateConfig

    level = trt.HardwareCompatibilityLevel
    return CreateConfig(
        hardware_compatibility_level=level.AMPERE_PLUS if recipe.target == PORTABLE else level.NONE,
        builder_optimization_level=recipe.builder_level,
        **common,
    )


def _with_timings(create_config: Any, timings: TimingCache | None) -> Any:
    """Return what makes a configuration, of a builder and a network, that has the timings."""
    if timings is None:
        return create_config

    def with_timings(builder: object, network: object) -> Any:
        config = create_config(builder, network)
        timings.give(config)
        return config

    return with_timings


def _logger(trt: Any) -> Any:
    class Log(trt.ILogger):
        """Keeps the errors, and the figures that TensorRT says nowhere else."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.found = {"Max Scratch Memory": 0, "Total Weights Memory": 0}

        def log(self, severity: object, message: str) -> None:
            if severity in (trt.Logger.ERROR, trt.Logger.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == trt.Logger.INFO and (said := re.fullmatch(r"(.+ Memory): (\d+) bytes", message.strip())):
                self.found[said[1]] = max(self.found.get(said[1], 0), int(said[2]))

    return Log()


def _monitor(trt: Any, watch: Watch) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Tells `watch` of the phases' steps and stops the build where it says so."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.stopped = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.stopped |= not watch(phase_name, (step + 1) / max(1, self.steps.get(phase_name, 1)))
            return not self.stopped

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


@contextlib.contextmanager
def _replaced(module: ModuleType, name: str, value: object) -> Iterator[None]:
    old = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, old)
