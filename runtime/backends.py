"""Who can run a bundle's networks. A new backend is one file engine_NAME.py and its line here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from .bundle import Bundle
from .engines import Engines
from .errors import LdmrtError
from .folded import STEP
from .memo import Memo
from .specs import Engine
from .turns import TOGETHER, Maker, Turns, Visitor, by_turns


@dataclass(frozen=True)
class Settings:
    """How networks are run."""

    threads: int = 0  # 0 is one a core
    low_memory: bool = False  # one network in memory at a time
    folded: bool | None = None  # a row in one call; None is where ONNX Runtime has a GPU


Makers = Mapping[str, Maker]  # by component


def _onnxruntime(bundle: Bundle, backend: str, settings: Settings) -> Makers:
    from .engine_ort import OrtEngine

    engine = partial(OrtEngine, backend=backend, threads=settings.threads, frugal=settings.low_memory)
    makers: dict[str, Maker] = {
        name: partial(engine, name, bundle.model(name), spin=name.startswith(TOGETHER)) for name in bundle.components
    }
    # The two are called by turns: threads of one that spin would take the cores from the other.
    other: dict[str, Maker] = {name: partial(engine, name, path, spin=False) for name, path in bundle.cut.items()}
    step = bundle.step if bundle.manifest else None
    if settings.folded and step is None:
        hint = "ldmrt export CHECKPOINT BUNDLE"
        raise LdmrtError("unet", f"{bundle.path} has no folded step", hint=hint)
    # On a CPU a call a row saves nothing.
    if step is not None and (settings.folded or (settings.folded is None and backend == "onnxruntime-cuda")):
        other[STEP] = partial(engine, "unet", step)
    if other and bundle.manifest:  # the U-Net itself is then opened by requests that run it
        makers["unet"] = partial(Visitor, "unet", makers["unet"], Turns(), bundle.specs("unet"))
    return {**makers, **other}


def _tensorrt(bundle: Bundle, backend: str, settings: Settings) -> Makers:
    if settings.folded:
        hint = "--backend onnxruntime-cuda"
        raise LdmrtError("backend", f"no engines of the folded step are built for {backend}", hint=hint)
    from .engine_trt import TrtEngine
    from .trt import Session

    session = Session(backend)
    return {name: partial(TrtEngine, name, bundle, session) for name in bundle.components}


def _auto(bundle: Bundle, backend: str, settings: Settings) -> Makers:
    from .engine_auto import makers

    return makers(bundle, _onnxruntime(bundle, "onnxruntime", settings))


BACKENDS: Mapping[str, Callable[[Bundle, str, Settings], Makers]] = {
    "auto": _auto,
    "onnxruntime": _onnxruntime,
    "onnxruntime-cuda": _onnxruntime,
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt,
}


def here(bundle: Bundle) -> tuple[str, ...]:
    """The backends of this machine that can run a bundle, or a part of it: those of ONNX Runtime, and those that have
    an engine in it for the GPU. An `LdmrtError` where there is none.
    """
    from .engine_auto import sessions
    from .engine_ort import available

    built = tuple(one.backend for one in sessions(bundle))
    try:
        return (*available(), *built)
    except LdmrtError:
        if not built:
            raise
        return built


def check_name(backend: str) -> None:
    """An `LdmrtError` where there is no backend of this name."""
    if backend not in BACKENDS:
        raise LdmrtError("backend", f"no backend {backend!r}", expected=", ".join(BACKENDS))


def open_engines(bundle: Bundle, backend: str, settings: Settings = Settings()) -> Engines:
    """The components of a bundle on a backend, each opened when it is needed. `auto` takes engines that were built for
    this machine's GPU, and ONNX Runtime where none fits. Text encoders keep what they said.
    """
    check_name(backend)
    makers = BACKENDS[backend](bundle, backend, settings)
    if settings.low_memory:
        makers = by_turns(makers, {name: bundle.specs(name) for name in bundle.manifest.get("components", {})})
    makers = {name: partial(_remembering, name, make) for name, make in makers.items()}
    return Engines(makers, take_turns=settings.low_memory)


def _remembering(name: str, make: Maker) -> Engine:
    engine = make()
    return Memo(engine) if name.startswith("text_encoder") else engine
