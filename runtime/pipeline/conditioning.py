"""Condition the U-Net: embeddings of the prompts, and the sizes and scores that SDXL is conditioned on beside them."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.bundle.model_info import ModelInfo
from ldmrt.runtime.errors import BundleError, InvalidRequest, LdmrtError, LdmrtWarning, NotFinite
from ldmrt.runtime.samplers.guidance import Guidance
from ldmrt.runtime.tensors import Array, Engine
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

from .request.request import Request

Floats = NDArray[np.float32]
Size = tuple[int, int]  # height, width
Texts = tuple[str | None, ...]  # one for each text encoder; None is the empty word that SDXL takes as zeros


@dataclass(frozen=True)
class Conditioning:
    """Holds the embeddings of prompts."""

    context: Array  # (N, tokens, width), float32
    pooled: Array | None = None  # (N, projection), float32: SDXL


class _Side:
    """The prompts, or the negative prompts: as texts, or as embeddings that stand for them."""

    def __init__(self, request: Request, prefix: str, texts: Sequence[Texts], skip: int) -> None:
        self.texts, self.skip = texts, skip
        self.context = request.embeddings(f"{prefix}prompt_embeds")
        self.pooled = request.embeddings(f"{prefix}pooled_prompt_embeds")


def condition(
    request: Request,
    engines: LazyEngines,
    tokenizers: Mapping[str, Tokenizer],
    model: ModelInfo,
    guidance: Guidance,
    size: Size,
) -> dict[str, Array]:
    """Return the inputs of the U-Net that follow from prompts and sizes, each with one row for each call.

    Rows of the negative prompts stand before those of the prompts; without guidance there are none.

    Args:
        request: The request.
        engines: Those of the pipeline: text encoders are opened where texts are encoded.
        tokenizers: By text encoder: "tokenizer" and "tokenizer_2".
        model: The bundle's model.
        guidance: Of the request.
        size: (height, width) of the images in pixels.
    """
    inputs = unet_inputs(engines)
    xl, images = "text_embeds" in inputs, request.total_images
    sides = [_Side(request, "", request.texts, request.clip_skip or 0)]
    if not guidance.plain:
        texts = request.negative_texts(zeros=model.zero_empty_prompt)
        sides.insert(0, _Side(request, "negative_", texts, request.negative_clip_skip or 0))
    words = _conditioning(sides, engines, tokenizers, xl=xl)
    out: dict[str, Array] = {"encoder_hidden_states": words.context}
    if xl and words.pooled is not None:
        width = fixed_size(inputs, "time_ids", -1)
        ids = time_ids(request, images, size, width, scored=model.aesthetic_score)
        out |= {"text_embeds": words.pooled, "time_ids": ids[1] if guidance.plain else np.concatenate(ids)}
    if "timestep_cond" in inputs:  # a distilled model takes the strength of guidance as an input
        embedding = guidance_embedding(request.guidance_scale, fixed_size(inputs, "timestep_cond", -1))
        out["timestep_cond"] = embedding.repeat(images, axis=0)
    return out


def unet_inputs(engines: LazyEngines) -> dict[str, tuple[int | str, ...]]:
    """Return the shapes of the U-Net's inputs, in symbols, by name."""
    return {spec.name: spec.shape for spec in engines["unet"].inputs}


def fixed_size(inputs: Mapping[str, tuple[int | str, ...]], name: str, axis: int) -> int:
    """Return a size of one of the U-Net's inputs that is the same for every request.

    Raises:
        BundleError: The U-Net has no such input, or it states no such size.
    """
    shape = inputs.get(name, ())
    size = shape[axis] if -len(shape) <= axis < len(shape) else None
    if not isinstance(size, int):
        found = f"{name} {shape}" if name in inputs else ", ".join(inputs)
        raise BundleError("unet", f"no input {name} of a fixed width", found=found, hint="export again")
    return size


def text_encoders(engines: LazyEngines) -> list[str]:
    """Return the names of the text encoders."""
    return [name for name in engines if name.startswith("text_encoder")]


def reads_texts(request: Request) -> bool:
    """Return whether a text encoder is needed: not where embeddings stand for all prompts."""
    negative = request.negative_prompt_embeds is None and request.guidance_scale > 1
    return request.prompt_embeds is None or negative


def _conditioning(
    sides: Sequence[_Side], engines: LazyEngines, tokenizers: Mapping[str, Tokenizer], *, xl: bool
) -> Conditioning:
    """Encode the texts of all sides in one call, and put embeddings in their places."""
    read = [side for side in sides if side.context is None]
    encoded = None
    if read:
        texts = [text for side in read for text in side.texts]
        skips = [side.skip for side in read for _ in side.texts]
        encoded = encode({name: engines[name] for name in text_encoders(engines)}, tokenizers, texts, skips, xl=xl)
        if len(read) == len(sides):
            return encoded
    contexts, pooled, place = list[Array](), list[Array](), 0
    for side in sides:
        if side.context is None and encoded is not None:
            mine = slice(place, place + len(side.texts))
            place = mine.stop
            contexts.append(encoded.context[mine])
            pooled += [] if encoded.pooled is None else [encoded.pooled[mine]]
        elif side.context is not None:
            contexts.append(side.context)
            if xl and side.pooled is None:
                problem = "prompt embeddings without pooled ones, which this model asks for"
                raise InvalidRequest("request", problem, expected="pooled_prompt_embeds (prompts, width)")
            pooled += [side.pooled] if xl and side.pooled is not None else []
    if len({context.shape[1:] for context in contexts}) > 1:
        shapes = " and ".join(str(context.shape) for context in contexts)
        raise InvalidRequest("request", "negative and positive embeddings differ in shape", found=shapes)
    return Conditioning(np.concatenate(contexts), np.concatenate(pooled) if pooled else None)


def encode(
    encoders: Mapping[str, Engine], tokenizers: Mapping[str, Tokenizer], texts: Sequence[Texts], skips: Sequence[int],
    *, xl: bool,
) -> Conditioning:  # fmt: skip
    """Encode texts, each once.

    Stable Diffusion 1 and 2 take the last hidden state; SDXL the last but one of all its encoders side by side, and the
    last encoder's pooled embedding.

    Args:
        encoders: The text encoders, in their order.
        tokenizers: By name: "tokenizer" and "tokenizer_2".
        texts: For each image a text for each encoder; one alone is for all.
        skips: For each image, how many more of the last layers are skipped.
        xl: The U-Net is SDXL's.
    """
    contexts, pooled = [], None
    for i, (name, engine) in enumerate(encoders.items()):
        tokenizer = tokenizers[name.replace("text_encoder", "tokenizer")]
        own = [one[min(i, len(one) - 1)] for one in texts]
        unique = list(dict.fromkeys(text or "" for text in own))
        out = engine(input_ids=tokenizer(unique))
        places = [unique.index(text or "") for text in own]
        empty = np.array([text is None for text in own])
        layers = {skip: out[_state(name, out, xl, skip)] for skip in set(skips)}
        rows = [layers[skip][place] for skip, place in zip(skips, places, strict=True)]
        state = np.stack(rows).astype(np.float32, copy=False)
        contexts.append(np.where(empty[:, None, None], np.float32(0), state) if empty.any() else state)
        if xl and "text_embeds" in out:
            projected = out["text_embeds"][places].astype(np.float32, copy=False)
            pooled = np.where(empty[:, None], np.float32(0), projected)
    words = Conditioning(np.concatenate(contexts, axis=-1), pooled)
    if not np.isfinite(words.context).all():
        raise NotFinite("text_encoder", "the context is not finite", hint="check the checkpoint's weights")
    if xl and pooled is None:
        raise LdmrtError("text_encoder", "no encoder gives text_embeds, which this U-Net asks for", hint="export again")
    return words


def _state(name: str, out: Mapping[str, Array], xl: bool, skip: int) -> str:
    """Return the name of the text encoder's output that is the context."""
    if xl:
        layers = sum(output.startswith("hidden_states.") for output in out)
        wanted = f"hidden_states.{layers - 2 - skip}"
    else:
        wanted = f"last_hidden_state.{skip}" if skip else "last_hidden_state"
    if wanted not in out:
        raise LdmrtError(
            name, f"cannot skip {skip} layers", expected="a smaller clip_skip", found=f"no output {wanted}"
        )
    return wanted


def time_ids(
    request: Request, images: int, size: tuple[int, int], width: int, *, scored: bool
) -> tuple[Floats, Floats]:
    """Return SDXL's size conditions (Podell et al. 2023, section 2.2), for the negative prompts and for the prompts.

    Both are (images, 6): original size, crop, target size; the refiner's (images, 5) end with an aesthetic score.
    """
    original, target = request.original_size or size, request.target_size or size
    positive = [*original, *request.crops_coords_top_left, *([request.aesthetic_score] if scored else target)]
    rows = []
    for row in (_negative_sizes(request, original, target, scored=scored), positive):
        if len(row) != width:
            raise LdmrtError("unet", "time_ids of another length", expected=width, found=len(row))
        rows.append(np.tile(np.array(row, np.float32), (images, 1)))
    return rows[0], rows[1]


def _negative_sizes(request: Request, original: Size, target: Size, *, scored: bool) -> list[float]:
    """Return the size conditions of the negative prompt, with the defaults of diffusers' pipelines.

    From noise they count all together or not at all; from an image the crop is the prompt's, but for the refiner, which
    has the negative crop and score.
    """
    negative = request.negative_original_size, request.negative_target_size
    if scored:
        return [*(negative[0] or original), *request.negative_crops_coords_top_left, request.negative_aesthetic_score]
    if request.image is not None or request.denoising_start is not None:
        return [*(negative[0] or original), *request.crops_coords_top_left, *(negative[1] or target)]
    if negative[0] is None or negative[1] is None:
        if negative != (None, None) or request.negative_crops_coords_top_left != (0, 0):
            problem = "negative sizes count only where negative_original_size and negative_target_size are given"
            warnings.warn(f"request: {problem}", LdmrtWarning, stacklevel=2)
        return [*original, *request.crops_coords_top_left, *target]
    return [*negative[0], *request.negative_crops_coords_top_left, *negative[1]]


def guidance_embedding(scale: float, width: int) -> Floats:
    """Embed the guidance scale as sinusoids, (1, width): distilled models take it as an input (Meng et al. 2023)."""
    half = width // 2
    frequencies = np.exp(np.arange(half) * -(np.log(10000.0) / (half - 1)))
    angles = np.float32((scale - 1) * 1000.0) * frequencies.astype(np.float32)
    out = np.concatenate([np.sin(angles), np.cos(angles), np.zeros(width % 2)])
    return out[None].astype(np.float32)
