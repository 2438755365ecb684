"""What the U-Net is told beside the latents: contexts of the prompts, and the sizes and scores that SDXL asks for."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.runtime.tensors import Engine
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

from .request import Request

Floats = NDArray[np.float32]
Size = tuple[int, int]  # height, width
Texts = tuple[str | None, ...]  # one for each text encoder; None is the empty word that SDXL takes as zeros


@dataclass(frozen=True)
class Conditioning:
    """What text encoders make of prompts."""

    context: Floats  # (N, tokens, width)
    pooled: Floats | None = None  # (N, projection): SDXL


def encode(
    encoders: Mapping[str, Engine], tokenizers: Mapping[str, Tokenizer], texts: Sequence[Texts], skips: Sequence[int],
    *, xl: bool,
) -> Conditioning:  # fmt: skip
    """Contexts of texts, one a text encoder in each. Equal texts are encoded once.

    Stable Diffusion 1 and 2 take the last hidden state; SDXL the last but one of all its encoders side by side, and the
    last encoder's pooled text. `skips`, one a text, leave out that many more layers.
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
        raise LdmrtError("text_encoder", "the context is not finite", hint="check the checkpoint's weights")
    if xl and pooled is None:
        raise LdmrtError("text_encoder", "no encoder gives text_embeds, which this U-Net asks for", hint="export again")
    return words


def _state(name: str, out: Mapping[str, Any], xl: bool, skip: int) -> str:
    """Which output of a text encoder is the context."""
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
    request: Request, pictures: int, size: tuple[int, int], width: int, *, scored: bool
) -> tuple[Floats, Floats]:
    """SDXL's size conditions (Podell et al. 2023, section 2.2), (images, 6) for the negative prompts and for the
    positive: original size, crop, target size; the refiner's 5 end with an aesthetic score instead.
    """
    original, target = request.original_size or size, request.target_size or size
    positive = [*original, *request.crop, *([request.aesthetic_score] if scored else target)]
    rows = []
    for row in (_negative_sizes(request, original, target, scored=scored), positive):
        if len(row) != width:
            raise LdmrtError("unet", "time_ids of another length", expected=width, found=len(row))
        rows.append(np.tile(np.array(row, np.float32), (pictures, 1)))
    return rows[0], rows[1]


def _negative_sizes(request: Request, original: Size, target: Size, *, scored: bool) -> list[float]:
    """The size conditions of the negative prompt, as diffusers' pipelines fill in what is left out.

    Those that start from noise take all of them or none; those that start from an image have the prompt's crop, but
    for the refiner, which has the negative one and its score.
    """
    negative = request.negative_original_size, request.negative_target_size
    if scored:
        return [*(negative[0] or original), *request.negative_crop, request.negative_aesthetic_score]
    if request.image is not None or request.denoising_start is not None:
        return [*(negative[0] or original), *request.crop, *(negative[1] or target)]
    if negative[0] is None or negative[1] is None:
        if negative != (None, None) or request.negative_crop != (0, 0):
            problem = "negative sizes count only where negative_original_size and negative_target_size are given"
            warnings.warn(f"request: {problem}", LdmrtWarning, stacklevel=2)
        return [*original, *request.crop, *target]
    return [*negative[0], *request.negative_crop, *negative[1]]


def guidance_embedding(scale: float, width: int) -> Floats:
    """The strength of guidance as sinusoids, (1, width): distilled models take it as an input (Meng et al. 2023)."""
    half = width // 2
    frequencies = np.exp(np.arange(half) * -(np.log(10000.0) / (half - 1)))
    angles = np.float32((scale - 1) * 1000.0) * frequencies.astype(np.float32)
    out = np.concatenate([np.sin(angles), np.cos(angles), np.zeros(width % 2)])
    return out[None].astype(np.float32)
