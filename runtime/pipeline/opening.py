"""Open a bundle as a pipeline."""

import warnings
from dataclasses import replace
from pathlib import Path

from ldmrt.runtime.backends.registry import BackendSettings, check_compute, check_name, open_engines
from ldmrt.runtime.backends.replaced_files import Watched
from ldmrt.runtime.backends.trt.sessions import open_sessions
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.hub import local_bundle
from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.runtime.samplers.config import Config
from ldmrt.runtime.samplers.settings import read_scheduler
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

from .autoencoder.decode import Decoding
from .autoencoder.safety import ON
from .autoencoder.tiling import PASSES
from .batch_size import Forecast, unet_profiles
from .loras.loaded import Loras
from .loras.source import Source
from .pipeline import Pipeline
from .request.stages import check_order


def decoding_of(
    tile: int | None, tile_passes: int, on_overflow: str, low_memory: bool, keep_optimized: bool, safety: str = ON
) -> Decoding:
    """Return how latents are decoded, from arguments of `open_pipeline`.

    Raises:
        LdmrtError: An argument is invalid, or two exclude one another.
    """
    if keep_optimized and low_memory:
        problem = "keep_optimized and low_memory exclude each other"
        raise LdmrtError("open", problem, expected="only one of them")
    return Decoding(tile, on_overflow, low_memory, tile_passes, safety)


def open_pipeline(
    bundle: str | Path,
    backend: str = "auto",
    *,
    check: bool = True,
    tile: int | None = None,
    tile_passes: int = PASSES,
    on_overflow: str = "stop",
    low_memory: bool = False,
    threads: int = 0,
    fused: bool | None = None,
    keep_optimized: bool = False,
    compute: str = "fp32",
    scheduler: str | Path | Config | None = None,
    safety: str = ON,
) -> Pipeline:
    """Open a bundle as a pipeline, with all its stages; it warns where no certificate holds for the bundle's files.

    Args:
        bundle: The bundle's folder, or its name on the hub: "owner/name", or "owner/name@revision".
        backend: One of `ldmrt.runtime.BACKENDS`: "auto" takes engines that `ldmrt build` made for this machine's GPU,
            and ONNX Runtime where none fits.
        check: Compares the bundle's files with its manifest first.
        tile: The side in pixels of the tiles in which images are decoded and encoded; whole images by default.
        tile_passes: How often all tiles are passed over; the last pass gives the image, see `Decoding`.
        on_overflow: "stop" or "retry", for an image that is not finite, see `Decoding`.
        low_memory: Keeps one network in memory at a time, which are then opened anew for every request, runs the
            U-Net on few rows of a batch at a time, and takes images above 768 pixels in tiles.
        threads: Of the CPU; 0 is one a core.
        fused: Runs a row as one call where a request allows it, so that latents stay where the U-Net runs. By default
            with onnxruntime-cuda, and where `ldmrt build --folded` has made an engine of it for this GPU.
        keep_optimized: Keeps the networks as ONNX Runtime optimised or OpenVINO compiled them in the bundle's folder,
            which takes as much disk again: the next pipeline opens in a fraction of the time. On GPUs and NPUs nothing
            is kept.
        compute: The precision that OpenVINO computes in: "fp32", or "bf16", "fp16" and "int8" on a device that has
            them. For int8 the bundle has to hold ranges of activations. The others compute in that of the bundle.
        scheduler: A scheduler's config, or its file, in place of the bundle's; that of later stages is theirs.
        safety: What becomes of images that the safety checker flags, of a bundle that carries one: "on" makes them
            black, "report" leaves them as they are, "off" does not look.

    Raises:
        BundleError: The bundle is missing or damaged.
        EngineNotFound: A backend that is named has no engine for this GPU.
        LdmrtError: An argument is invalid, or a package is missing.
    """
    check_name(backend)
    check_compute(backend, compute)
    decoding = decoding_of(tile, tile_passes, on_overflow, low_memory, keep_optimized, safety)
    config = read_scheduler(Path(scheduler)) if isinstance(scheduler, (str, Path)) else scheduler
    settings = BackendSettings(threads, low_memory, fused, keep_optimized, compute)
    folder = local_bundle(bundle)

    def open_stage(folder: Path, name: object, config: Config | None) -> tuple[Pipeline, tuple[str, ...]]:
        """Open one bundle, and name the stages after it."""
        watched = Watched(folder)
        opened = Bundle.open(folder, check=check, stamped=True)
        decoding.cells(opened.stage.space.factor, ())  # raises where the tile is invalid
        for issue in filter(None, (*opened.certificate_issues, opened.uncovered)) if check else ():
            hint = f"ldmrt verify {name} --against CHECKPOINT --store"
            warnings.warn(f"{name}: {issue}; next: {hint}", LdmrtWarning, stacklevel=3)
        sessions = open_sessions(opened, backend)
        engines = open_engines(opened, backend, replace(settings, watched=watched, sessions=sessions))
        if check and (issue := opened.narrow_issue(backend, compute)):
            hint = "for images that are proven: --compute fp32"
            warnings.warn(f"{name}: {issue}; {hint}", LdmrtWarning, stacklevel=3)
        pipeline = Pipeline(
            engines,
            {name: Tokenizer(files) for name, files in opened.tokenizers.items()},
            config or opened.scheduler,
            opened.stage,
            opened.certificate if check else None,
            decoding,
            unet_profiles(opened, backend),
            Forecast.read(opened, backend),
            opened.schedulers,
            opened.network_bytes,
            loras=Loras(Source(opened, backend, threads, low_memory, sessions)),
        )
        return pipeline, opened.then

    first, names = open_stage(folder, bundle, config)
    later = []
    for number, name in enumerate(names, start=1):
        pipeline, _ = open_stage(folder / name, folder / name, None)
        later.append(replace(pipeline, stage=replace(pipeline.stage, name=name, number=number)))
        check_order(later[-1].stage)
    return replace(first, later=tuple(later))
