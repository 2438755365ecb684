"""Run a bundle's networks: text encoders, U-Net and autoencoder, from a request to images."""

import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.backends.registry import BackendSettings, check_name, open_engines
from ldmrt.runtime.backends.replaced_files import Watched
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.certificate import Certificate
from ldmrt.runtime.bundle.engines.engine_key import Bucket
from ldmrt.runtime.bundle.graphs import DECODER
from ldmrt.runtime.bundle.hub import local_bundle
from ldmrt.runtime.bundle.stages import Row, Stage
from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.runtime.images import reading
from ldmrt.runtime.images.sizes import enlarged_size
from ldmrt.runtime.samplers.config import Config
from ldmrt.runtime.samplers.guidance import guide
from ldmrt.runtime.samplers.loop import State
from ldmrt.runtime.samplers.plan import Latents, Plan
from ldmrt.runtime.samplers.registry import plan_from_config
from ldmrt.runtime.samplers.settings import read_scheduler, with_settings
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

from .autoencoder.decode import Decoding, decode, decode_unrounded
from .autoencoder.tiling import PASSES
from .batch_size import Forecast, bounded, images_at_once, unet_profiles
from .call import ImagePipeline, Result
from .conditioning.context import Context
from .conditioning.prompts import reads_texts, text_encoders
from .conditioning.sources import condition
from .denoise import Denoised, DenoisingTask, Encoded, check_finite
from .initial_latents import initial_latents
from .overlap import in_stages
from .request.checks import Text
from .request.images import read_images
from .request.request import Request


@dataclass(frozen=True)
class Pipeline(ImagePipeline):
    """The networks of one model, and how a request becomes images: encoded, denoised, decoded.

    Threads may share a pipeline.

    Attributes:
        engines: The networks by name, opened when they are first used.
        tokenizers: By name: "tokenizer" and "tokenizer_2".
        scheduler: diffusers' scheduler_config.json.
        stage: What the bundle says of its model: its space, its size, the sources of its inputs, its guidance.
        certificate: What was measured when the bundle was made.
        decoding: How latents are decoded: in tiles, once more in float32.
        profiles: The sizes that engines of the U-Net were built for.
        forecast: The memory that images take.
        schedulers: The configs of schedulers that add noise to an image which the network is given, by their folders.
    """

    engines: LazyEngines
    tokenizers: Mapping[str, Tokenizer]
    scheduler: Config
    stage: Stage
    certificate: Certificate | None = field(default=None, repr=False)
    decoding: Decoding = field(default_factory=Decoding)
    profiles: tuple[tuple[str, Bucket], ...] = field(default=(), repr=False)
    forecast: Forecast | None = None
    schedulers: Mapping[str, Config] = field(default_factory=dict, repr=False)

    def generate(self, request: Request) -> Result:
        """Make the images of a request; more than fit in memory are made in parts."""
        most = self.images_at_once(request)
        if request.total_images <= most:
            return self._generate(request)
        return Result.joined(list(self.draw(self.parts(bounded(request), most))))

    def parts(self, request: Request, batch: int) -> Iterator[Request]:
        """Yield a request as several of at most so many images, which make the same images."""
        return request.parts(batch, self.stage.space.factor, self.stage.enlarges)

    def draw(self, requests: Iterable[Request]) -> Generator[Result, None, None]:
        """Yield the results of many requests, in their order; their stages overlap.

        While one request is in the U-Net, the prompts of the next are encoded and the latents of the last decoded: so
        far it reads ahead. With low memory they run one by one.
        """
        stopped = Event()
        stages = (self._encode, partial(self._denoise, go_on=lambda: not stopped.is_set()), self._decode)
        if self.engines.take_turns:
            yield from map(self._generate, requests)
        else:
            yield from in_stages(requests, stages, stopped.set)

    def steps(self, request: Request | Text) -> Iterator[State]:
        """Yield the state after every row of a request, or of a prompt: for progress, previews, or to stop.

        Raises:
            NotFinite: Latents are not finite; the error names the row.
        """
        return check_finite(self.prepare(request).steps())

    def prepare(self, request: Request | Text) -> DenoisingTask:
        """Encode the prompts and images of a request, or of a prompt, and make its first row ready."""
        return self._task(self._encode(bounded(Request.of(request))))

    def rows(self, request: Request) -> int:
        """Return how many times the U-Net runs for a request."""
        return self.plan(request).rows

    def images_at_once(self, request: Request) -> int:
        """Return how many images of a request are made in one batch.

        An image to start from is not read for its size, unless it is enlarged.
        """
        factor, own = self.stage.space.factor, (request.height or self.stage.size, request.width or self.stage.size)
        if request.latents is not None and request.denoising_start is not None:
            height, width = request.latents.shape[2:]
            own = height * factor, width * factor
        elif request.image is not None and self.stage.enlarges > 1 and None in (request.height, request.width):
            first = reading.split("image", request.image)[0]
            own = enlarged_size(reading.read("image", first), factor, self.stage.enlarges)
        rows = len(self._rows(request)[0])
        return images_at_once(self.profiles, own, factor, rows=rows, forecast=self.forecast)

    def plan(self, request: Request) -> Plan:
        """Return the sampler's table for a request."""
        return plan_from_config(
            with_settings(self.scheduler, request.scheduler_settings, request.scheduler),
            request.num_inference_steps,
            name=request.scheduler,
            eta=request.eta,
            strength=request.strength if request.image is not None and not self.stage.takes_image else 1.0,
            shortened=self.stage.shortens,
            start=request.denoising_start,
            end=request.denoising_end,
        )

    def decode(self, latents: Latents) -> NDArray[np.uint8]:
        """Decode latents (N, C, h, w), float32, to images (N, H, W, 3), or 6 channels with a depth."""
        return decode(self.engines, self.stage.space, latents, self.decoding)

    def close(self) -> None:
        """Free the engines; a later request raises `LdmrtError`. A second call does nothing."""
        self.engines.close()

    def _generate(self, request: Request) -> Result:
        """Make the images of a request in one batch."""
        with self.engines.turn:
            return self._decode(self._denoise(self._encode(request)))

    def _encode(self, request: Request) -> Encoded:
        """Prompts to embeddings, an image and its mask to latents, the scheduler to a plan."""
        called = time.perf_counter()
        plan = self.plan(request)
        decodes = request.output_type != "latent" and self.decoding.tile is None
        rows, scales = self._rows(request)
        encoders = text_encoders(self.engines) if reads_texts(request, rows) else []
        self.engines.open_soon([*encoders, "unet", *([DECODER] if decodes else [])])
        given = read_images(request, self.stage)
        start = initial_latents(request, plan, self.engines, self.stage, given, self.decoding)
        guidance = guide(request.total_images, scales, request.guidance_rescale)
        sources = self.engines, self.tokenizers, self.schedulers, self.decoding
        conditioning = condition(Context(request, self.stage, rows, given, *sources))
        return Encoded(request, plan, start, given.size, guidance, conditioning, time.perf_counter() - called)

    def _rows(self, request: Request) -> tuple[tuple[Row, ...], list[float]]:
        """Return the rows of guidance that a request runs, and their scales: the last one alone without guidance."""
        rows, scales = self.stage.guide.rows, request.scales(self.stage.guide.scales)
        return (rows if scales else rows[-1:]), scales

    def _task(self, encoded: Encoded) -> DenoisingTask:
        """Connect the U-Net with the plan of a request, and its callback with this pipeline."""
        callback = encoded.request.callback_on_step_end
        return DenoisingTask.of(self.engines, encoded, partial(callback, self) if callback is not None else None)

    def _denoise(self, encoded: Encoded, go_on: Callable[[], bool] = lambda: True) -> Denoised:
        """One row after another: controls, U-Net, guidance, the plan's row."""
        called = time.perf_counter()
        x = self._task(encoded).last(go_on)
        return Denoised(encoded.request, x, encoded.seconds + time.perf_counter() - called)

    def _decode(self, denoised: Denoised) -> Result:
        """Latents to images, in the form that the request asks for."""
        called, request, x = time.perf_counter(), denoised.request, denoised.x
        if request.output_type == "latent":
            return Result(x, x, request.seeds, {"latents": denoised.seconds, "decode": 0.0})
        how = decode_unrounded if request.output_type == "np" else decode
        array = how(self.engines, self.stage.space, x, self.decoding)
        return Result(array, x, request.seeds, {"latents": denoised.seconds, "decode": time.perf_counter() - called})


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
) -> Pipeline:
    """Open a bundle as a pipeline; it warns where no certificate holds for the bundle's files.

    Args:
        bundle: The bundle's folder, or its name on the hub: "owner/name", or "owner/name@revision".
        backend: One of `ldmrt.runtime.BACKENDS`: "auto" takes engines that `ldmrt build` made for this machine's GPU,
            and ONNX Runtime where none fits.
        check: Compares the bundle's files with its manifest first.
        tile: The side in pixels of the tiles in which images are decoded and encoded; whole images by default.
        tile_passes: How often all tiles are passed over; the last pass gives the image, see `Decoding`.
        on_overflow: "stop" or "retry", for an image that is not finite, see `Decoding`.
        low_memory: Keeps one network in memory at a time, which are then opened anew for every request, and takes
            images above 768 pixels in tiles.
        threads: Of the CPU; 0 is one a core.
        fused: Runs a row as one call where a request allows it, so that latents stay where the U-Net runs. By default
            with onnxruntime-cuda, and where `ldmrt build --folded` has made an engine of it for this GPU.
        keep_optimized: Keeps the networks as ONNX Runtime optimised or OpenVINO compiled them in the bundle's folder,
            which takes as much disk again: the next pipeline opens in a fraction of the time. On GPUs and NPUs nothing
            is kept.
        compute: The precision that OpenVINO computes in: "fp32", or "bf16", "fp16" and "int8" on a device that has
            them. For int8 the bundle has to hold ranges of activations. The others compute in that of the bundle.
        scheduler: A scheduler's config, or its file, in place of the bundle's.

    Raises:
        BundleError: The bundle is missing or damaged.
        EngineNotFound: A backend that is named has no engine for this GPU.
        LdmrtError: An argument is invalid, or a package is missing.
    """
    check_name(backend)
    if keep_optimized and low_memory:
        problem = "keep_optimized and low_memory exclude each other"
        raise LdmrtError("open", problem, expected="only one of them")
    decoding = Decoding(tile, on_overflow, low_memory, tile_passes)
    folder = local_bundle(bundle)
    watched = Watched(folder)
    opened = Bundle.open(folder, check=check, stamped=True)
    decoding.cells(opened.stage.space.factor, ())  # raises where the tile is invalid
    for issue in filter(None, (*opened.certificate_issues, opened.uncovered)) if check else ():
        hint = f"ldmrt verify {bundle} --against CHECKPOINT --store"
        warnings.warn(f"{bundle}: {issue}; next: {hint}", LdmrtWarning, stacklevel=2)
    settings = BackendSettings(threads, low_memory, fused, keep_optimized, compute, watched)
    engines = open_engines(opened, backend, settings)
    if check and (issue := opened.narrow_issue(backend, compute)):
        warnings.warn(f"{bundle}: {issue}; for images that are proven: --compute fp32", LdmrtWarning, stacklevel=2)
    tokenizers = {name: Tokenizer(files) for name, files in opened.tokenizers.items()}
    certificate = opened.certificate if check else None
    config = read_scheduler(Path(scheduler)) if isinstance(scheduler, (str, Path)) else scheduler or opened.scheduler
    profiles = unet_profiles(opened, backend)
    forecast = Forecast.read(opened, backend)
    schedulers = opened.schedulers
    return Pipeline(engines, tokenizers, config, opened.stage, certificate, decoding, profiles, forecast, schedulers)
