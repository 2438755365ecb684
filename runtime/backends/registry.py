"""The backends that can run a bundle's networks. A new one is a folder here with an engine class, and a line of
`BACKENDS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.graphs import STEP, TOGETHER, UNET_HALVES
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.nearest import suggestion
from ldmrt.runtime.tensors import Engine

from .lazy_engines import LazyEngines
from .low_memory import LowMemory, Maker, SharedEngine, in_low_memory
from .replaced_files import Watched
from .text_encoder_cache import CachedTextEncoder


@dataclass(frozen=True)
class BackendSettings:
    """Says how networks are run."""

    threads: int = 0  # 0 is one a core
    low_memory: bool = False  # one network in memory at a time
    folded: bool | None = None  # a row in one call; None is where ONNX Runtime has a GPU, or an engine of it is there
    keep_optimized: bool = False  # what ONNX Runtime makes of the graphs, beside the bundle
    watched: Watched | None = None  # the files as they were when the bundle was opened


Makers = Mapping[str, Maker]  # by component


def _onnxruntime(bundle: Bundle, backend: str, settings: BackendSettings) -> Makers:
    open_one = partial(_open_onnxruntime, bundle, backend, settings)
    makers: dict[str, Maker] = {name: partial(open_one, name) for name in bundle.graphs}
    if settings.folded is False or (settings.folded is None and backend != "onnxruntime-cuda"):
        makers.pop(STEP, None)  # on a CPU a call a row saves nothing
    if makers.keys() & {STEP, *UNET_HALVES}:  # the U-Net itself is then opened by requests that run it
        makers["unet"] = partial(SharedEngine, "unet", makers["unet"], LowMemory(), bundle.specs("unet"))
    return makers


def _open_onnxruntime(bundle: Bundle, backend: str, settings: BackendSettings, name: str) -> Engine:
    from .ort.engine import OrtEngine, version
    from .ort.graph_cache import place

    # The halves of a U-Net are called by turns: threads of one that spin would take the cores from the other.
    spin = bundle.home(name).startswith(TOGETHER) and name not in UNET_HALVES
    optimized = place(bundle, name, backend, version()) if settings.keep_optimized else None
    if settings.watched is not None:
        settings.watched.check(bundle, name)
    engine = OrtEngine(
        name, bundle.model(name), backend, threads=settings.threads, frugal=settings.low_memory, spin=spin,
        optimized=optimized, records=name == STEP,
    )  # fmt: skip
    if settings.watched is not None:  # also while it was read
        settings.watched.check(bundle, name)
    return engine


def _tensorrt(bundle: Bundle, backend: str, settings: BackendSettings) -> Makers:
    from .trt.engine import TrtEngine, folds
    from .trt.session import Session

    session = Session(backend)
    steps = (STEP,) if folds(bundle, session, settings.folded) else ()
    return {name: partial(TrtEngine, name, bundle, session) for name in (*bundle.components, *steps)}


def _auto(bundle: Bundle, backend: str, settings: BackendSettings) -> Makers:
    from .auto import makers

    return makers(bundle, _onnxruntime(bundle, "onnxruntime", settings), settings.folded)


BACKENDS: Mapping[str, Callable[[Bundle, str, BackendSettings], Makers]] = {
    "auto": _auto,
    "onnxruntime": _onnxruntime,
    "onnxruntime-cuda": _onnxruntime,
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt,
}


def available_backends(bundle: Bundle) -> tuple[str, ...]:
    """The backends of this machine that can run a bundle, or a part of it: those of ONNX Runtime, and those that have
    an engine in it for the GPU. An `LdmrtError` where there is none.
    """
    from .auto import sessions
    from .ort.engine import available

    built = tuple(one.backend for one in sessions(bundle))
    try:
        return (*available(), *built)
    except LdmrtError:
        if not built:
            raise
        return built


SHORT = {"ort": "onnxruntime", "trt": "tensorrt"}  # as people call them


def check_name(backend: str) -> None:
    """An `LdmrtError` where there is no backend of this name."""
    if backend not in BACKENDS:
        problem = f"no backend {backend!r}{suggestion(SHORT.get(str(backend).casefold(), backend), BACKENDS)}"
        raise LdmrtError("backend", problem, expected=", ".join(BACKENDS))


def open_engines(bundle: Bundle, backend: str, settings: BackendSettings = BackendSettings()) -> LazyEngines:
    """The components of a bundle on a backend, each opened when it is needed. `auto` takes engines that were built for
    this machine's GPU, and ONNX Runtime where none fits. Text encoders keep the
    embeddings of earlier prompts.
    """
    check_name(backend)
    if settings.folded and STEP not in bundle.graphs:
        hint = "ldmrt export CHECKPOINT BUNDLE"
        raise LdmrtError("unet", f"{bundle.path} has no folded step", hint=hint)
    makers = BACKENDS[backend](bundle, backend, settings)
    if settings.low_memory:
        known = bundle.manifest.get("components", {})
        makers = in_low_memory(
            makers, {name: bundle.specs(name) for name in bundle.graphs if bundle.home(name) in known}
        )
    makers = {name: partial(_remembering, name, make) for name, make in makers.items()}
    return LazyEngines(makers, take_turns=settings.low_memory)


def _remembering(name: str, make: Maker) -> Engine:
    engine = make()
    return CachedTextEncoder(engine) if name.startswith("text_encoder") else engine


LACKING = "NOT_IMPLEMENTED"  # how ONNX Runtime says that it has no kernel


def unsupported_precision(bundle: Bundle, engines: Mapping[str, Engine]) -> str:
    """Which component cannot run for want of arithmetic, and why; empty where all can. Opens what is of bfloat16."""
    for name in bundle.components:
        if bundle.precision(name) == "bf16":
            try:
                engines[name]
            except LdmrtError as error:
                if LACKING not in str(error.found):
                    raise
                return f"{name} in bf16 ({str(error.found).rpartition(LACKING)[2].strip(' :')})"
    return ""
