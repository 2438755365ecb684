"""Run a bundle's networks: text encoders, U-Net and autoencoder, from a request to images."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, pairwise
from threading import Event

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.backends.low_memory import SharedEngine
from ldmrt.runtime.bundle.certificate import Certificate
from ldmrt.runtime.bundle.engines.engine_key import Bucket
from ldmrt.runtime.bundle.graphs import DECODER, DECODER_PREVIEW, TRANSFORMER
from ldmrt.runtime.bundle.stages import Stage
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.samplers.config import Config
from ldmrt.runtime.samplers.loop import State
from ldmrt.runtime.samplers.plan import Latents, Plan
from ldmrt.runtime.samplers.registry import find_scheduler
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

from .autoencoder.decode import Decoding, decode, decode_unrounded
from .batch_size import Forecast, bounded, images_at_once
from .call import ImagePipeline, Result
from .conditioning.composition import most_parts, rows_of, scales_of
from .conditioning.context import Context
from .conditioning.inputs import guided_inputs
from .conditioning.prompts import reads_texts, text_encoders
from .conditioning.sources import check_sources
from .denoising.denoise import Denoised, DenoisingTask, Encoded, check_finite
from .denoising.initial_latents import initial_latents
from .denoising.noise_order import noise_of
from .denoising.plan_of_request import plan_of
from .loras.asked import asked
from .loras.loaded import Loras, TakesLoras
from .overlap import in_stages
from .request.checks import Text
from .request.images import pasted, read_images, size_of
from .request.request import Request
from .request.second_pass import Pass, enlarged, first_pass, second_pass
from .request.stages import first_request, next_request, walk


@dataclass(frozen=True, eq=False)
class Pipeline(ImagePipeline, TakesLoras):
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
        weights: The bytes of its networks on disk, nearly all of which are weights.
        later: The later stages of a cascade, each of which enlarges the images of the one before.
        watch: Called with the state after each row; what it raises ends the request. A row is then never one call.
        loras: Those that are loaded.
        record: What the records of its images share, see `infotext.record.run_of`; None where nothing writes records.
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
    weights: int = 0
    later: "tuple[Pipeline, ...]" = ()
    watch: Callable[[State], object] | None = field(default=None, repr=False)
    loras: Loras = field(default_factory=Loras, repr=False)
    record: JsonObject | None = field(default=None, repr=False)

    @property
    def stages(self) -> "tuple[Pipeline, ...]":
        """Every stage of a cascade, or the one that there is."""
        return (self, *self.later)

    def generate(self, request: Request) -> Result:
        """Make the images of a request, by all stages that it runs; more than fit in memory are made in parts."""
        (first, own), *later = self._passes(request)
        result, spent = first._generate_in_parts(own.request), 0.0
        for (before, _), (each, then) in pairwise([(first, own), *later]):
            if before is not each:
                before.free()
            spent += sum(result.seconds.values())
            made = then.after(result.latents, None if then.method else result.pixels)
            result = each._generate_in_parts(made)
        seconds = result.seconds | {"latents": spent + result.seconds["latents"]}
        return self.checked(replace(result, seconds=seconds))

    def _walk(self, request: Request) -> "tuple[Pipeline, ...]":
        """Return the stages that a request runs."""
        places = walk(request, [each.stage.name for each in self.stages])
        return self.stages[places.start : places.stop]

    def _passes(self, request: Request) -> "list[tuple[Pipeline, Pass]]":
        """Return each stage that a request runs, once for each pass, with its request; later ones have blank images.

        What any of them refuses by the request alone is refused here, before the first one runs.
        """
        first, *later = self._walk(request)
        others = [each.stage for each in self.stages if each is not first]
        own = first_request(request, first.stage, others, ends=not later)
        size, _ = size_of(own, first.stage), asked(own, first.loras)
        then = [(each, Pass(next_request(request, each.stage, ends=each is later[-1]))) for each in later]
        if own.hires is not None:
            then, own = [(first, second_pass(own, first.stage, size))], first_pass(own).request
        for each, made in (passes := [(first, Pass(own)), *then]):
            check_sources(made.request, each.stage)
            each.plan(made.request)
        return passes

    def _generate_in_parts(self, request: Request) -> Result:
        """Make the images of this stage; no safety checker looks at them."""
        most = self.images_at_once(request)
        if request.total_images <= most:
            return self._generate(request)
        return Result.joined(list(self._overlapped(self.parts(bounded(request), most))))

    def parts(self, request: Request, batch: int) -> Iterator[Request]:
        """Yield a request as several of at most so many images, which make the same images."""
        first = self._walk(request)[0].stage
        return request.parts(batch, first.space.unit, first.enlarges)

    def draw(self, requests: Iterable[Request]) -> Generator[Result, None, None]:
        """Yield the results of many requests, in their order; their stages overlap.

        While one request is in the U-Net, the prompts of the next are encoded and the latents of the last decoded: so
        far it reads ahead. With low memory, and through several stages or passes, they run one by one.
        """
        for several, group in groupby(requests, lambda request: bool(self.later) or request.hires is not None):
            if several:
                yield from map(self.generate, group)
            else:
                own = (self._passes(request)[0][1].request for request in group)
                yield from map(self.checked, self._overlapped(own))

    def _overlapped(self, requests: Iterable[Request]) -> Generator[Result, None, None]:
        """Yield the results of many requests of this stage; no safety checker looks at them."""
        stopped = Event()
        stages = (self._encode, partial(self._denoise, go_on=lambda: not stopped.is_set()), self._decode)
        if self.engines.take_turns:
            yield from map(self._generate, requests)
        else:
            yield from in_stages(requests, stages, stopped.set)

    def interpolate(self, requests: Sequence[Request], frames: int, start: int = 0) -> Iterator[Result]:
        """Yield the frames from `start` on, from each request's image to the next one's; raise as `check_keys` does."""
        from .denoising.interpolation import between, check_keys, only_pass

        check_keys(requests, frames, start)
        with self.engines.turn:
            keys = [self._encode(only_pass(self._passes(request))) for request in requests]
        for frame in range(start, frames):
            with self.engines.turn:
                yield self.checked(self._decode(self._denoise(between(keys, frame * (len(keys) - 1) / (frames - 1)))))

    def steps(self, request: Request | Text) -> Iterator[State]:
        """Yield the state after every row of a request, or of a prompt: for progress, previews, or to stop.

        Raises:
            NotFinite: Latents are not finite; the error names the row.
        """
        passes = self._passes(Request.of(request))
        later, begun, made = [each.plan(own.request).rows for each, own in passes[1:]], 0, passes[0][1].request
        for place, (each, _) in enumerate(passes):
            task = each.prepare(made)
            rows = begun + task.plan.rows + sum(later[place:])
            for state in check_finite(task.steps(), task.network):
                yield replace(state, row=begun + state.row, rows=rows, stage=each.stage.name)
            begun += task.plan.rows
            if place < len(later):
                after, then = passes[place + 1]
                made = then.after(state.x, None if then.method else each.decode(state.x, each.stage.name)[..., :3])
                if after is not each:
                    each.free()

    def prepare(self, request: Request | Text) -> DenoisingTask:
        """Encode the prompts and images of a request of this stage, or of a prompt, and make its first row ready."""
        return self._task(self._encode(bounded(Request.of(request))))

    def rows(self, request: Request) -> int:
        """Return how many times the U-Nets run for a request."""
        return sum(each.plan(own.request).rows for each, own in self._passes(request))

    def size(self, request: Request) -> tuple[int, int]:
        """Return the height and width in pixels of a request's images, in the first stage that it runs."""
        begins = self._walk(request)[0]
        if begins is not self:
            return begins.size(replace(request, from_stage=None, until_stage=None, stages={}))
        return size_of(request, self.stage)

    def final_size(self, request: Request) -> tuple[int, int]:
        """Return the height and width in pixels of the images that this stage is left with: after a second pass."""
        return enlarged(self.size(request), request, self._walk(request)[0].stage.space.unit)

    def images_at_once(self, request: Request) -> int:
        """Return how many images of a request are made in one batch, in the first stage that it runs."""
        begins, size, rows = self._walk(request)[0], self.final_size(request), self.guidance_rows(request)
        return images_at_once(begins.profiles, size, begins.stage.space.factor, rows=rows, forecast=begins.forecast)

    def guidance_rows(self, request: Request) -> int:
        """Return how many rows the U-Net runs for an image of a request, in the first stage that it runs."""
        begins = self._walk(request)[0]
        return len(rows_of(request, begins.stage)[0]) - 1 + (most_parts(request) or 1)

    def plan(self, request: Request, size: tuple[int, int] | None = None) -> Plan:
        """Return the sampler's table for a request.

        Args:
            request: The request.
            size: Height and width of its images in pixels, by which a dynamic shift is chosen; `size` of the request by
                default.
        """
        return plan_of(request, self.stage, self.scheduler, lambda: size or self.size(request))

    def decode(self, latents: Latents, stage: str | None = None) -> NDArray[np.uint8]:
        """Decode latents (N, C, h, w), float32, of a stage to images (N, H, W, 3), or 6 channels with a depth."""
        of = self._named(stage)
        return decode(of.engines, of.stage.space, latents, of.decoding)

    def preview(self, latents: Latents, stage: str | None = None) -> NDArray[np.uint8]:
        """Decode latents (N, C, h, w) as `decode` does, to (N, H, W, 3), by the preview decoder if there is one."""
        of = self._named(stage)
        if of.stage.preview is None or DECODER_PREVIEW not in of.engines:
            return of.decode(latents, of.stage.name)[..., :3]
        return decode(of.engines, of.stage.preview, latents, of.decoding, DECODER_PREVIEW)

    def _named(self, stage: str | None) -> "Pipeline":
        """Return the stage of a name; the last one of None."""
        of = next((each for each in self.stages if each.stage.name == stage), None)
        if of is None and stage is not None:
            names = ", ".join(each.stage.name for each in self.stages)
            raise LdmrtError("decode", f"unknown stage {stage!r:.100}", expected=names)
        return of or self.stages[-1]

    def free(self) -> None:
        """Make room where one network is in memory at a time."""
        network = self.engines[self.stage.network]
        if isinstance(network, SharedEngine):
            network.free()

    def unload(self) -> None:
        """Free the memory of the networks of all stages; the next request opens them again. None may run meanwhile."""
        for each in self.stages:
            each.loras.free()
            each.engines.unload()

    def close(self) -> None:
        """Free the engines of all stages; a later request raises `LdmrtError`. A second call does nothing."""
        for each in self.stages:
            each.loras.free()
            each.engines.close()

    def _generate(self, request: Request) -> Result:
        """Make the images of a request in one batch."""
        with self.engines.turn:
            return self._decode(self._denoise(self._encode(request)))

    def _encode(self, request: Request) -> Encoded:
        """Prompts to embeddings, an image and its mask to latents, the scheduler to a plan."""
        called = time.perf_counter()
        check_sources(request, self.stage, warns=True)
        plan = self.plan(request)  # raises before anything is opened
        engines = self._networks(request)
        decodes = request.output_type != "latent" and self.decoding.tile is None and DECODER in engines
        rows, scales = rows_of(request, self.stage)
        encoders = text_encoders(engines) if reads_texts(request, rows) else []
        engines.open_soon([*encoders, self.stage.network, *([DECODER] if decodes else [])])
        given = read_images(request, self.stage)
        if self.stage.network == TRANSFORMER:  # a dynamic shift is that of the size that is drawn
            plan = self.plan(request, given.size)
        noise = noise_of(request, self.stage, given)
        start = initial_latents(request, plan, engines, self.stage, given, self.decoding, noise)
        sources = engines, self.tokenizers, self.schedulers, self.decoding
        context = Context(request, self.stage, rows, given, *sources, noise=noise)
        calls = find_scheduler(self.scheduler, request.scheduler)[0].calls
        inputs = guided_inputs(context, scales, scales_of(request, self.stage), plan, calls)
        return Encoded(request, plan, start, given.size, inputs, noise, time.perf_counter() - called, self.stage.number)

    def _networks(self, request: Request) -> LazyEngines:
        """Return the engines that a request runs, with its LoRAs."""
        return self.loras.engines(self.engines, asked(request, self.loras))

    def _task(self, encoded: Encoded) -> DenoisingTask:
        """Connect the U-Net with the plan of a request, and its callback with this pipeline."""
        callback = encoded.request.callback_on_step_end
        engines = self._networks(encoded.request)
        return DenoisingTask.of(engines, encoded, partial(callback, self) if callback is not None else None)

    def _denoise(self, encoded: Encoded, go_on: Callable[[], bool] = lambda: True) -> Denoised:
        """One row after another: controls, U-Net, guidance, the plan's row."""
        called = time.perf_counter()
        x = self._task(encoded).last(go_on, self.watch)
        return Denoised(encoded.request, x, encoded.seconds + time.perf_counter() - called)

    def _decode(self, denoised: Denoised) -> Result:
        """Latents to images, in the form that the request asks for."""
        called, request, x = time.perf_counter(), denoised.request, denoised.x
        if request.output_type == "latent":
            return Result(x, x, request.seeds, {"latents": denoised.seconds, "decode": 0.0})
        how = decode_unrounded if request.output_type == "np" else decode
        array = pasted(request, how(self.engines, self.stage.space, x, self.decoding))
        seconds = {"latents": denoised.seconds, "decode": time.perf_counter() - called}
        return Result(array, x, request.seeds, seconds)
