"""From a prompt to images: tokens, context, the sampler's rows, decoded latents."""

import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.backends.registry import BackendSettings, check_name, open_engines
from ldmrt.runtime.backends.replaced_files import Watched
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.certificate import Certificate
from ldmrt.runtime.bundle.engines.recipe import Bucket
from ldmrt.runtime.bundle.graphs import DECODER, STEP
from ldmrt.runtime.bundle.model_info import ModelInfo
from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.runtime.nearest import suggestion
from ldmrt.runtime.samplers.guidance import Guidance, classifier_free, guided_rows, positive_half
from ldmrt.runtime.samplers.loop import Model, State
from ldmrt.runtime.samplers.noise import noise
from ldmrt.runtime.samplers.plan import Latents, Plan
from ldmrt.runtime.samplers.registry import plan_from_config
from ldmrt.runtime.samplers.settings import read_scheduler, with_settings
from ldmrt.runtime.tensors import BindableEngine
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

from .autoencoder.decode import Decoding, decode
from .autoencoder.tiling import PASSES
from .batch_size import Forecast, bounded, images_at_once, unet_profiles
from .conditioning import Texts, encode, guidance_embedding, time_ids
from .controls import open_controls
from .deep_cache import DeepCached, full_times
from .denoise import Denoised, DenoisingTask, Encoded, check_finite
from .fused_step import FusedStep, can_fuse
from .initial_latents import InitialLatents, initial_latents
from .overlap import in_stages
from .request import Request


@dataclass(frozen=True)
class Result:
    """Holds what came of a request."""

    images: NDArray[np.uint8] = field(repr=False)  # (N, H, W, 3)
    latents: Latents = field(repr=False)  # (N, C, h, w), as the U-Net sees them
    seeds: list[int]
    seconds: dict[str, float]  # by stage

    @classmethod
    def joined(cls, parts: Sequence["Result"]) -> "Result":
        """The result of a request from those of its parts."""
        images, latents = (np.concatenate([getattr(one, name) for one in parts]) for name in ("images", "latents"))
        seconds = {name: sum(one.seconds[name] for one in parts) for name in parts[0].seconds}
        return cls(images, latents, [seed for one in parts for seed in one.seeds], seconds)


@dataclass(frozen=True)
class Pipeline:
    """The networks of one model and what turns a request into calls of them."""

    engines: LazyEngines
    tokenizers: Mapping[str, Tokenizer]
    scheduler: Mapping[str, Any]  # diffusers' scheduler_config.json
    shape: ModelInfo
    certificate: Certificate | None = field(default=None, repr=False)  # what was measured when the bundle was made
    decoding: Decoding = field(default_factory=Decoding)
    profiles: tuple[tuple[str, Bucket], ...] = field(default=(), repr=False)  # that engines of the U-Net were built for
    forecast: Forecast | None = None  # of the memory that images take

    def __call__(self, prompt: Any, **options: Any) -> Result:
        """The images of a `Request`, given whole or as its prompt and fields. More than fit are drawn in parts."""
        request = self.request(prompt, options)
        most = self.images_at_once(request)
        if request.images <= most:
            return self._draw(request)
        return Result.joined(list(self.draw(bounded(request).parts(most))))

    def latents(self, prompt: Any, **options: Any) -> Latents:
        """The latents after the last row, (N, C, h, w), not decoded: what another model can go on with."""
        with self.engines.turn:
            return self._sample(self._begin(bounded(self.request(prompt, options)))).x

    def rows(self, request: Request) -> int:
        """How many times the network runs for a request."""
        return self.plan(request).rows

    def images_at_once(self, request: Request) -> int:
        """How many images of a request are drawn in one piece, where its size is known before its image is read."""
        own = (request.height or self.shape.size, request.width or self.shape.size)
        if request.latents is not None and request.denoising_start is not None:
            height, width = request.latents.shape[2:]
            own = height * self.shape.factor, width * self.shape.factor
        guided = request.guidance > 1
        return images_at_once(self.profiles, own, self.shape.factor, guided=guided, forecast=self.forecast)

    def steps(self, prompt: Any, **options: Any) -> Iterator[State]:
        """The generator behind a call: the state after every row. Walk it for progress, previews, or to stop."""
        return check_finite(self.prepare(prompt, **options).steps())

    def draw(self, requests: Iterable[Request]) -> Generator[Result, None, None]:
        """The results of many requests, in their order. While one is in the U-Net, the next one's words are encoded and
        the last one's latents decoded: so far it reads ahead. With low memory they come one by one.
        """
        stopped = Event()
        stages = (self._begin, partial(self._sample, go_on=lambda: not stopped.is_set()), self._finish)
        if self.engines.take_turns:
            yield from map(self._draw, requests)
        else:
            yield from in_stages(requests, stages, stopped.set)

    def _draw(self, request: Request) -> Result:
        """Draw one request from its beginning to its end."""
        with self.engines.turn:
            return self._finish(self._sample(self._begin(request)))

    def prepare(self, prompt: Any, **options: Any) -> DenoisingTask:
        """All that comes before the first row: the words and images of a `Request` encoded, its sampler planned."""
        return self._task(self._begin(bounded(self.request(prompt, options))))

    def _begin(self, request: Request) -> Encoded:
        """Encode the words and images of a request."""
        called = time.perf_counter()
        plan = self.plan(request)
        self.engines.open_soon([*self._text_encoders, "unet", *([DECODER] if self.decoding.tile is None else [])])
        extra = int(self._inputs["sample"][1]) - self.shape.channels
        start = initial_latents(request, plan, self.engines, self.shape, self.decoding, extra=extra)
        distilled = "timestep_cond" in self._inputs  # such a model takes the strength of guidance as an input
        scale = 1.0 if distilled else max(1.0, request.guidance)
        guidance = classifier_free(len(request.seeds), scale, request.guidance_rescale)
        words = self._words(request, guidance, start)
        if distilled:
            width = int(self._inputs["timestep_cond"][-1])
            embedding = guidance_embedding(request.guidance, width)
            words["timestep_cond"] = embedding.repeat(len(request.seeds), axis=0)
        return Encoded(request, plan, start, guidance, words, time.perf_counter() - called)

    def _task(self, begun: Encoded) -> DenoisingTask:
        """Prepare the U-Net and its sampler."""
        request, plan, start, guidance, words = (
            begun.request,
            begun.plan,
            begun.initial,
            begun.guidance,
            begun.conditioning,
        )
        seeds, every = request.seeds, request.full_every
        unet = self.engines["unet"] if every == 1 else DeepCached(self.engines, full_times(plan, every))
        model = self._network(request, start, guidance, words, unet)
        if request.guidance_interval is not None and not guidance.plain:
            guided = guided_rows(plan, request.guidance_interval)
            alone = self._network(request, start, classifier_free(len(seeds), 1.0), positive_half(words), unet)
            model = partial(_either, dict(zip(plan.t.tolist(), guided, strict=True)), model, alone)

        def fresh(row: int, into: Latents | None = None) -> Latents:
            return noise(seeds, plan.first + row + 1, start.x.shape[1:], into)

        x = start.x if start.init is not None else start.x * np.float32(plan.prior_scale)
        folded = None
        if STEP in self.engines and can_fuse(plan, request, guidance) and start.blend is None:
            beside = {} if start.beside is None else {"beside": start.beside[guidance.idx]}
            step = FusedStep(cast(BindableEngine, self.engines[STEP]), guidance, {**words, **beside})
            folded = step if step.ready(plan, x.shape) else None
        return DenoisingTask(plan, x, model, fresh, start.init, start.blend, folded)

    def _sample(self, begun: Encoded, go_on: Callable[[], bool] = lambda: True) -> Denoised:
        """The latents after the last row."""
        called = time.perf_counter()
        x = self._task(begun).last(go_on)
        return Denoised(x, begun.request.seeds, begun.seconds + time.perf_counter() - called)

    def _finish(self, sampled: Denoised) -> Result:
        """Decode the latents to images."""
        called = time.perf_counter()
        images = self.decode(sampled.x)
        seconds = {"latents": sampled.seconds, "decode": time.perf_counter() - called}
        return Result(images, sampled.x, sampled.seeds, seconds)

    def plan(self, request: Request) -> Plan:
        """The sampler's table for a request."""
        return plan_from_config(
            with_settings(self.scheduler, request.scheduler_settings, request.scheduler),
            request.steps,
            name=request.scheduler,
            eta=request.eta,
            strength=request.strength if request.image is not None else 1.0,
            shortened=self.shape.consistency,
            start=request.denoising_start,
            end=request.denoising_end,
        )

    @staticmethod
    def request(prompt: Any, options: Mapping[str, Any]) -> Request:
        """A `Request` from what a caller gave."""
        if unknown := [name for name in options if name not in Request.__dataclass_fields__]:
            problem = f"no option {unknown[0]!r}{suggestion(unknown[0], Request.__dataclass_fields__)}"
            raise LdmrtError("request", problem, expected=", ".join(Request.__dataclass_fields__))
        if isinstance(prompt, Request):
            return replace(prompt, **options)
        return Request(prompt, **options)

    def decode(self, latents: Latents) -> NDArray[np.uint8]:
        """Latents (N, C, h, w) to images (N, H, W, 3)."""
        return decode(self.engines, self.shape, latents, self.decoding)

    def close(self) -> None:
        """Free the engines; whoever runs it afterwards gets an `LdmrtError`. A second call does nothing."""
        self.engines.close()

    def __enter__(self) -> "Pipeline":
        """The pipeline, which is closed at the end of the `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _network(
        self, request: Request, start: InitialLatents, guidance: Guidance, words: Mapping[str, NDArray[Any]],
        unet: Callable[..., Mapping[str, NDArray[Any]]],
    ) -> Model:  # fmt: skip
        """The U-Net with its controls, guided."""
        controls = open_controls(self.engines, request.controls, start.size, guidance, words)
        idx, channels = guidance.idx, start.x.shape[1]

        def model(x: Latents, t: float, into: Latents | None = None) -> Latents:
            x, times = x[idx], np.full(len(idx), t, np.float32)
            seen = x if start.beside is None else np.concatenate([x, start.beside[idx]], axis=1)
            out = unet(sample=seen, timestep=times, **words, **controls(x, times))
            return guidance.combine(out["out_sample"].astype(np.float32, copy=False), into, channels)

        return model

    @property
    def _text_encoders(self) -> list[str]:
        return [name for name in self.engines if name.startswith("text_encoder")]

    @property
    def _inputs(self) -> dict[str, tuple[int | str, ...]]:
        return {spec.name: spec.shape for spec in self.engines["unet"].inputs}

    def _words(self, request: Request, guidance: Guidance, start: InitialLatents) -> dict[str, NDArray[Any]]:
        """The U-Net's inputs that follow from prompts and sizes: of the negative prompts, then of the positive."""
        xl, zeros = "text_embeds" in self._inputs, self.shape.zero_empty_prompt
        texts: list[Texts] = [*request.texts]
        skips = [request.clip_skip] * len(texts)
        if not guidance.plain:
            texts = [*request.negative_texts(zeros=zeros), *texts]
            skips = [*[request.negative_clip_skip] * len(skips), *skips]
        encoders = {name: self.engines[name] for name in self._text_encoders}
        words = encode(encoders, self.tokenizers, texts, skips, xl=xl)
        inputs: dict[str, NDArray[Any]] = {"encoder_hidden_states": words.context}
        if xl and words.pooled is not None:
            width = int(self._inputs["time_ids"][-1])
            ids = time_ids(request, len(request.seeds), start.size, width, scored=self.shape.aesthetic_score)
            inputs |= {"text_embeds": words.pooled, "time_ids": ids[1] if guidance.plain else np.concatenate(ids)}
        return inputs


def _either(
    guided: Mapping[float, bool], one: Model, other: Model, x: Latents, t: float, into: Latents | None = None
) -> Latents:
    """Predict with the first network at the times that are guided, else with the second."""
    return one(x, t, into) if guided[t] else other(x, t, into)


def open_pipeline(
    bundle: str | Path, backend: str = "auto", *, check: bool = True, tile: int | None = None,
    tile_passes: int = PASSES, on_overflow: str = "stop", low_memory: bool = False, threads: int = 0,
    folded: bool | None = None, keep_optimized: bool = False, scheduler: str | Path | Mapping[str, Any] | None = None,
) -> Pipeline:  # fmt: skip
    """Open a bundle for generating. `check` compares its files with the manifest first, and warns where no certificate
    holds for them. `backend` is one of `ldmrt.runtime.backends.registry.BACKENDS`: `auto` takes engines that
    `ldmrt build` made for this machine's GPU, and ONNX Runtime where none fits; one that is named and cannot run is an
    `LdmrtError`.

    `tile`, `tile_passes` and `on_overflow` are those of `Decoding`. With `low_memory` the networks take turns in
    memory, which costs opening them anew for every request, and images above 768 pixels are taken in tiles.
    `threads` are those of the CPU, 0 one a core. `folded` runs a row in one call where a request allows it, so that
    latents stay where the U-Net runs; left out, it is so with onnxruntime-cuda, and where `ldmrt build --folded` has
    made an engine of it for this GPU. `keep_optimized` keeps what ONNX Runtime makes of the networks in the bundle's
    folder, as much disk again: the next one opens in a fraction of the time. `scheduler` is a config in the place of
    the bundle's, or its file.
    """
    check_name(backend)
    if keep_optimized and low_memory:
        problem = "keep_optimized beside low_memory, which takes the networks as they are"
        raise LdmrtError("open", problem, expected="one of them")
    decoding = Decoding(tile, on_overflow, low_memory, tile_passes)
    watched = Watched(Path(bundle))
    opened = Bundle.open(Path(bundle), check=check, stamped=True)
    decoding.cells(opened.shape.factor, ())  # may refuse
    for doubt in filter(None, (*opened.certificate_issues, opened.uncovered)) if check else ():
        hint = f"ldmrt verify {bundle} --against CHECKPOINT --store"
        warnings.warn(f"{bundle}: {doubt}; next: {hint}", LdmrtWarning, stacklevel=2)
    engines = open_engines(opened, backend, BackendSettings(threads, low_memory, folded, keep_optimized, watched))
    tokenizers = {name: Tokenizer(files) for name, files in opened.tokenizers.items()}
    certificate = opened.certificate if check else None
    config = read_scheduler(Path(scheduler)) if isinstance(scheduler, (str, Path)) else scheduler or opened.scheduler
    profiles = unet_profiles(opened, backend)
    forecast = Forecast.read(opened, backend)
    return Pipeline(engines, tokenizers, config, opened.shape, certificate, decoding, profiles, forecast)
