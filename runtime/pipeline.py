"""From a prompt to pictures: tokens, context, the sampler's rows, decoded latents."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .errors import LdmrtError
from .guidance import classifier_free
from .noise import FIRST, noise
from .request import Request
from .sampler import Latents, Plan, State, steps
from .schedulers import plan_from_config
from .specs import Engine
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Result:
    """What came of a request."""

    images: NDArray[np.uint8] = field(repr=False)  # (N, H, W, 3)
    latents: Latents = field(repr=False)  # (N, C, h, w), as the U-Net sees them
    seeds: list[int]
    seconds: dict[str, float]  # by stage


@dataclass(frozen=True)
class Pipeline:
    """The networks of one model and what turns a request into calls of them."""

    engines: Mapping[str, Engine]
    tokenizer: Tokenizer
    scheduler: Mapping[str, Any]  # diffusers' scheduler_config.json
    channels: int
    factor: int  # pixels a latent
    scaling_factor: float
    size: int  # pixels

    def __call__(self, prompt: Any, **options: Any) -> Result:
        """The pictures of a `Request`, given whole or as its prompt and fields."""
        request = self.request(prompt, options)
        begin = time.perf_counter()
        x = np.empty(0, np.float32)
        for state in self.steps(request):
            x = state.x
        sampled = time.perf_counter()
        images = self.decode(x)
        seconds = {"latents": sampled - begin, "decode": time.perf_counter() - sampled}
        return Result(images, x, request.seeds, seconds)

    def steps(self, prompt: Any, **options: Any) -> Iterator[State]:
        """The generator behind a call: the state after every row. Walk it for progress, previews, or to stop."""
        request = self.request(prompt, options)
        plan = self.plan(request)
        seeds = request.seeds
        guidance = classifier_free(len(seeds), request.guidance, request.guidance_rescale)
        shape = (self.channels, *request.latent_size(self.size, self.factor))
        texts = request.prompts if request.guidance == 1.0 else request.negative_prompts + request.prompts
        context = self.encode(texts)
        unet = self.engines["unet"]

        def model(x: Latents, t: float) -> Latents:
            out = unet(sample=x[guidance.idx], timestep=np.full(len(guidance.idx), t), encoder_hidden_states=context)
            return guidance.combine(out["out_sample"].astype(np.float32, copy=False))

        def fresh(row: int) -> Latents:
            return noise(seeds, row + 1, shape)

        for state in steps(plan, self._first(request, shape) * np.float32(plan.prior_scale), model, fresh):
            if not np.isfinite(state.x).all():
                raise LdmrtError(
                    "unet",
                    f"latents are not finite after row {state.row}",
                    hint="ldmrt verify BUNDLE --against CHECKPOINT",
                )
            yield state

    def plan(self, request: Request) -> Plan:
        """The sampler's table for a request."""
        return plan_from_config(self.scheduler, request.steps, name=request.scheduler, eta=request.eta)

    @staticmethod
    def request(prompt: Any, options: Mapping[str, Any]) -> Request:
        """A `Request` from what a caller gave."""
        if unknown := [name for name in options if name not in Request.__dataclass_fields__]:
            raise LdmrtError("request", f"no option {unknown[0]!r}", expected=", ".join(Request.__dataclass_fields__))
        if isinstance(prompt, Request):
            return replace(prompt, **options)
        return Request(prompt, **options)

    def encode(self, texts: list[str]) -> NDArray:
        """Contexts of the texts, (len(texts), tokens, width). Equal texts are encoded once."""
        unique = list(dict.fromkeys(texts))
        context = self.engines["text_encoder"](input_ids=self.tokenizer(unique))["last_hidden_state"]
        if not np.isfinite(context).all():
            raise LdmrtError("text_encoder", "the context is not finite", hint="check the checkpoint's weights")
        return context[[unique.index(text) for text in texts]]

    def decode(self, latents: Latents) -> NDArray[np.uint8]:
        """Latents (N, C, h, w) to pictures (N, H, W, 3), one at a time: memory stays that of one picture."""
        decoder = self.engines["vae_decoder"]
        pictures = [decoder(latent_sample=one[None] / np.float32(self.scaling_factor))["sample"][0] for one in latents]
        out = np.stack(pictures).astype(np.float32, copy=False)
        if not np.isfinite(out).all():
            raise LdmrtError(
                "vae_decoder", "the picture is not finite", hint="ldmrt verify BUNDLE --against CHECKPOINT"
            )
        return np.rint((out / 2 + 0.5).clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)

    def _first(self, request: Request, shape: tuple[int, ...]) -> Latents:
        if request.latents is None:
            return noise(request.seeds, FIRST, shape)
        expected = (len(request.seeds), *shape)
        if np.shape(request.latents) != expected:
            raise LdmrtError("request", "wrong shape of latents", expected=expected, found=np.shape(request.latents))
        return np.asarray(request.latents, np.float32)

    def close(self) -> None:
        """Free the engines."""
        for engine in self.engines.values():
            engine.close()


BACKENDS = ("auto", "onnxruntime", "onnxruntime-cuda")


def open_pipeline(bundle: str | Path, backend: str = "auto", *, check: bool = True) -> Pipeline:
    """Open a bundle for generating. `check` compares its files with the manifest first."""
    from .engine_ort import OrtEngine

    if backend not in BACKENDS:
        raise LdmrtError("backend", f"no backend {backend!r}", expected=", ".join(BACKENDS))
    opened = Bundle.open(Path(bundle), check=check)
    engines = {
        name: OrtEngine(name, opened.model(name), "onnxruntime" if backend == "auto" else backend)
        for name in ("text_encoder", "unet", "vae_decoder")
    }
    return Pipeline(
        engines,
        Tokenizer.open(opened.path / "tokenizer"),
        opened.scheduler,
        opened.channels,
        opened.factor,
        opened.scaling_factor,
        opened.size,
    )
