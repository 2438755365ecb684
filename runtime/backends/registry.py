"""The backends that can run a bundle's networks.

A new backend is a folder here with an engine class, and a line of `BACKENDS`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.certificate import Islands
from ldmrt.runtime.bundle.graphs import STEP, TOGETHER, UNET_HALVES, denoiser_of, inside
from ldmrt.runtime.bundle.manifest import PRECISIONS
from ldmrt.runtime.errors import BundleError, LdmrtError
from ldmrt.runtime.nearest import suggestion
from ldmrt.runtime.tensors import Engine

from .lazy_engines import LazyEngines
from .low_memory import LowMemory, Maker, SharedEngine, in_low_memory
from .replaced_files import Watched
from .wrappers.few_rows import FewRows
from .wrappers.packed import given_latents
from .wrappers.text_encoder_cache import CachedTextEncoder

if TYPE_CHECKING:
    from .openvino.ranges import Ranges
    from .trt.session import Session

AnEngine = TypeVar("AnEngine", bound=Engine)


@dataclass(frozen=True)
class BackendSettings:
    """Holds how networks are run."""

    threads: int = 0  # on the CPU; 0 is one for each core
    low_memory: bool = False  # the networks of one stage in memory at a time, on few rows
    fused: bool | None = None  # rows as one call; None: with onnxruntime-cuda, and with an engine of the fused step
    keep_optimized: bool = False  # keep the networks as the backend optimised them beside the bundle
    compute: str = "fp32"  # the precision that OpenVINO computes in; others compute in that of the graph
    watched: Watched | None = None  # the files as they were when the bundle was opened
    islands: Islands | None = None  # what OpenVINO keeps in float32 in a narrower precision; None: the certificate's
    ranges: "Mapping[str, Ranges] | None" = None  # of activations, for int8 in OpenVINO; None: the bundle's
    sessions: "tuple[Session, ...] | None" = None  # of `open_sessions`; None: its own


Makers = Mapping[str, Maker]  # by component


def _onnxruntime(bundle: Bundle, backend: str, settings: BackendSettings) -> Makers:
    """Return what opens each graph in ONNX Runtime."""
    open_graph = partial(_open_onnxruntime, bundle, backend, settings)
    makers: dict[str, Maker] = {name: partial(open_graph, name) for name in bundle.graphs}
    if settings.fused is False or (settings.fused is None and backend != "onnxruntime-cuda"):
        makers.pop(STEP, None)  # on a CPU one call for each row saves nothing
    return _unet_on_demand(bundle, _sparing(makers, settings))


def _sparing(makers: dict[str, Maker], settings: BackendSettings) -> dict[str, Maker]:
    """Have low memory call networks on few rows. Not those of TensorRT, which were built for a number of rows."""
    if not settings.low_memory:
        return makers

    def on_few_rows(make: Maker) -> Engine:
        return FewRows(given_latents(make()))

    return {name: partial(on_few_rows, make) for name, make in makers.items()}


def _unet_on_demand(bundle: Bundle, makers: dict[str, Maker]) -> Makers:
    """Let only requests that run the whole U-Net open it, where a fused step or its halves may run in its place."""
    if makers.keys() & {STEP, *UNET_HALVES}:
        name = denoiser_of(makers)
        make, specs = makers[name], bundle.specs(name)
        # One that was closed opens nothing again, and low memory closes and opens the U-Net with every request.
        makers[name] = lambda: SharedEngine(name, make, LowMemory(), specs)
    return makers


def _unchanged(bundle: Bundle, settings: BackendSettings, name: str, make: Callable[[], AnEngine]) -> AnEngine:
    """Open a graph's engine, and check before and after that its files are those of the opened bundle."""
    _check_unchanged(bundle, settings, name)
    engine = make()
    _check_unchanged(bundle, settings, name)  # the files may have been replaced while they were read
    return engine


def _check_unchanged(bundle: Bundle, settings: BackendSettings, name: str) -> None:
    """Raise a `BundleError` where a graph's files are not those of the opened bundle."""
    if settings.watched is not None:
        settings.watched.check(bundle, name)


def _open_onnxruntime(bundle: Bundle, backend: str, settings: BackendSettings, name: str) -> Engine:
    """Open a graph in ONNX Runtime."""
    from .kept_networks import place
    from .ort.engine import OrtEngine, version
    from .ort.fixed_shapes import FixedShapes

    # The halves of a U-Net are called in turn: spinning threads of one would take the cores from the other.
    spin = bundle.home(name).startswith(TOGETHER) and name not in UNET_HALVES
    on_gpu = backend == "onnxruntime-cuda"
    # A graph that was optimised for a GPU holds operators of its provider alone, and opens in no other session.
    optimized = place(bundle, name, backend, version()) if settings.keep_optimized and not on_gpu else None
    path = bundle.models(name)[-1] if on_gpu else bundle.model(name)

    def open_session(dims: Mapping[str, int] | None = None) -> OrtEngine:
        frugal, threads = settings.low_memory, settings.threads
        make = partial(
            OrtEngine, name, path, backend, threads=threads, frugal=frugal, spin=spin, optimized=optimized, dims=dims
        )
        return _unchanged(bundle, settings, name, make)

    return FixedShapes(name, bundle.specs(name), open_session) if on_gpu and name == STEP else open_session()


def _openvino(bundle: Bundle, backend: str, settings: BackendSettings) -> Makers:
    """Return what opens each graph but the fused step in OpenVINO."""
    if settings.fused:
        raise LdmrtError("open", f"{backend} runs no fused step", hint="leave fused out")
    if settings.compute == "int8" and settings.ranges is None:
        from .openvino.ranges import read_ranges

        settings = replace(settings, ranges=read_ranges(bundle))
    open_graph = partial(_open_openvino, bundle, backend, settings)
    makers: dict[str, Maker] = {name: partial(open_graph, name) for name in bundle.graphs if name != STEP}
    return _unet_on_demand(bundle, _sparing(makers, settings))


def _open_openvino(bundle: Bundle, backend: str, settings: BackendSettings, name: str) -> Engine:
    """Open a graph in OpenVINO."""
    from .kept_networks import place
    from .openvino.engine import FIXED_AFTER, FIXED_MOST, OpenVinoEngine
    from .openvino.library import version

    islands = settings.islands if settings.islands is not None else bundle.islands(backend, settings.compute)
    modules = islands.get(bundle.home(name), {})
    compute = "fp32" if "" in modules else settings.compute
    table = (settings.ranges or {}).get(bundle.home(name)) if compute == "int8" else None
    calibrated = [] if table is None else [json.dumps(asdict(table), sort_keys=True)]
    keep = settings.keep_optimized and backend == "openvino"  # on other devices it depends on their drivers too
    light = not settings.low_memory and sum(file.stat().st_size for file in bundle.weights(name)) <= FIXED_MOST
    return OpenVinoEngine(
        name,
        bundle.model(name),
        backend,
        compute=compute,
        in_float32=(lambda path: any(inside(path, island) for island in modules)) if modules else None,
        ranges=table.inputs if table is not None else None,
        threads=settings.threads,
        specs=bundle.specs(name) if bundle.home(name) in bundle.manifest.get("components", {}) else None,
        compiled=place(bundle, name, backend, version(), compute, *sorted(modules), *calibrated) if keep else None,
        fixed_after=FIXED_AFTER if backend == "openvino" and light else None,
        fixed_first=backend == "openvino" and not light,
        check=partial(_check_unchanged, bundle, settings, name),
    )


def _tensorrt(bundle: Bundle, backend: str, settings: BackendSettings) -> Makers:
    """Return what opens each component in TensorRT, and the fused step if rows run by it."""
    from .trt.engine import TrtEngine, runs_fused

    (session,) = _sessions(bundle, backend, settings)
    steps = (STEP,) if runs_fused(bundle, session, settings.fused) else ()
    return {name: partial(TrtEngine, name, bundle, session) for name in (*bundle.components, *steps)}


def _auto(bundle: Bundle, backend: str, settings: BackendSettings) -> Makers:
    """Return what opens each graph by a built engine, or in ONNX Runtime; `backend` is "auto"."""
    from .auto import makers

    usable = _sessions(bundle, backend, settings)
    return makers(bundle, _onnxruntime(bundle, "onnxruntime", settings), usable, settings.fused)


def _sessions(bundle: Bundle, backend: str, settings: BackendSettings) -> "tuple[Session, ...]":
    """Return the sessions that were given, or else new ones."""
    from .trt.sessions import open_sessions

    return open_sessions(bundle, backend) if settings.sessions is None else settings.sessions


BACKENDS: Mapping[str, Callable[[Bundle, str, BackendSettings], Makers]] = {
    "auto": _auto,
    "onnxruntime": _onnxruntime,
    "onnxruntime-cuda": _onnxruntime,
    "openvino": _openvino,
    "openvino-gpu": _openvino,
    "openvino-npu": _openvino,
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt,
}


def available_backends(bundle: Bundle, compute: str = "fp32") -> tuple[str, ...]:
    """Name the backends that can run a bundle here, or a part of it.

    Args:
        bundle: The opened bundle.
        compute: The precision to compute in; all but "fp32" is a choice of OpenVINO's alone.

    Returns:
        The backends of the installed ONNX Runtime, those of OpenVINO, and those for which the bundle has an engine for
        this GPU.

    Raises:
        LdmrtError: There is none, as neither ONNX Runtime nor OpenVINO is installed.
    """
    from .openvino.devices import available as openvino_available
    from .ort.engine import available
    from .trt.sessions import sessions

    if compute != "fp32":
        return ("openvino",)  # which says where it cannot
    others = (*openvino_available(), *(session.backend for session in sessions(bundle)))
    try:
        return (*available(), *others)
    except LdmrtError:
        if not others:
            raise
        return others


SHORT = {"ort": "onnxruntime", "trt": "tensorrt", "ov": "openvino"}  # common abbreviations


def check_name(backend: str) -> None:
    """Raise an `LdmrtError` with a suggestion where there is no backend of this name."""
    if backend not in BACKENDS:
        problem = f"no backend {backend!r}{suggestion(SHORT.get(str(backend).casefold(), backend), BACKENDS)}"
        raise LdmrtError("backend", problem, expected=", ".join(BACKENDS))


def chooses_precision(backend: str) -> bool:
    """Tell whether a backend may compute in another precision than that of the bundle."""
    return BACKENDS.get(backend) is _openvino


def unavailable_precision(backends: Sequence[str], compute: str) -> str:
    """Return why one of some backends does not compute in a precision here; empty where all do."""
    from .openvino.devices import check_precision, device_of

    try:
        for name in backends if compute != "fp32" else ():
            check_precision("compute", device_of(name, "compute"), compute)
    except LdmrtError as error:
        return f"{compute} is not measured, as {error.problem}"
    return ""


def check_compute(backend: str, compute: str) -> None:
    """Raise an `LdmrtError` where a backend does not choose the precision that it computes in."""
    from .openvino.devices import COMPUTES

    if compute not in COMPUTES:
        problem = f"no precision {compute!r}{suggestion(compute, COMPUTES)}"
        raise LdmrtError("compute", problem, expected=", ".join(COMPUTES))
    if compute != "fp32" and not chooses_precision(backend):
        problem, expected = f"{backend} computes in the precision of the bundle", "openvino"
        other = f", or ldmrt export CHECKPOINT BUNDLE --precision {compute}" if compute in PRECISIONS else ""
        raise LdmrtError("compute", problem, expected=expected, found=compute, hint=f"--backend openvino{other}")


def open_engines(bundle: Bundle, backend: str, settings: BackendSettings = BackendSettings()) -> LazyEngines:
    """Open the networks of a bundle on a backend, each when it is needed.

    Args:
        bundle: The opened bundle.
        backend: A key of `BACKENDS`. `auto` takes engines that were built for this machine's GPU, and ONNX Runtime
            where none fits.
        settings: How the networks are run.

    Returns:
        The engines by graph. Text encoders keep the embeddings of earlier prompts.

    Raises:
        LdmrtError: There is no such backend, it cannot run here, or the bundle lacks the fused step that is asked for.
    """
    check_name(backend)
    check_compute(backend, settings.compute)
    if settings.fused and STEP not in bundle.graphs:
        hint = "ldmrt export CHECKPOINT BUNDLE"
        raise BundleError("unet", f"{bundle.path} has no fused step", hint=hint)
    makers = BACKENDS[backend](bundle, backend, settings)
    if settings.low_memory:
        known = bundle.manifest.get("components", {})
        makers = in_low_memory(
            makers, {name: bundle.specs(name) for name in bundle.graphs if bundle.home(name) in known}
        )
    makers = {name: partial(_adapted, name, make) for name, make in makers.items()}
    return LazyEngines(makers, take_turns=settings.low_memory)


def _adapted(name: str, make: Maker) -> Engine:
    """Open an engine; a text encoder keeps the embeddings of earlier prompts, and a transformer is given latents."""
    engine = given_latents(make())
    return CachedTextEncoder(engine) if name.startswith("text_encoder") else engine


NO_KERNEL = "NOT_IMPLEMENTED"  # in the messages of ONNX Runtime


def unsupported_precision(bundle: Bundle, engines: Mapping[str, Engine]) -> str:
    """Name the component that a backend has no bfloat16 kernels for, and the reason; empty where it has all.

    The components in bfloat16 are opened for it.
    """
    for name in bundle.components:
        if bundle.precision(name) == "bf16":
            try:
                engines[name]
            except LdmrtError as error:
                if NO_KERNEL not in str(error.found):
                    raise
                return f"{name} in bf16 ({str(error.found).rpartition(NO_KERNEL)[2].strip(' :')})"
    return ""
