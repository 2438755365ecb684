"""Encode prompts: each text once, by all text encoders, as the network's embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.bundle.stages import Row
from ldmrt.runtime.errors import InvalidRequest, LdmrtError, NotFinite
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.tensors import Array, Engine
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

Texts = tuple[str | None, ...]  # one for each text encoder; None is the empty word that SDXL takes as zeros


@dataclass(frozen=True)
class Conditioning:
    """Holds the embeddings of the prompts of all rows."""

    context: Array  # (N, tokens, width), float32
    pooled: Array | None = None  # (N, projection), float32: SDXL


@dataclass(frozen=True)
class Side:
    """The prompts of one row of guidance: as texts, or as embeddings that stand for them."""

    texts: Sequence[Texts]
    skip: int  # layers
    context: Array | None
    pooled: Array | None

    @classmethod
    def of(cls, request: Request, row: Row, *, zeros: bool) -> "Side":
        """Return the prompts, or the negative prompts, of a request; with `zeros` absent negative ones become zeros."""
        positive = row.prompt == "positive"
        texts = request.texts if positive else request.negative_texts(zeros=zeros)
        skip = request.clip_skip if positive else request.negative_clip_skip
        prefix = "" if positive else "negative_"
        arrays = (request.embeddings(f"{prefix}{name}") for name in ("prompt_embeds", "pooled_prompt_embeds"))
        return cls(texts, skip or 0, *arrays)


def text_encoders(engines: LazyEngines) -> list[str]:
    """Return the names of the text encoders."""
    return [name for name in engines if name.startswith("text_encoder")]


def reads_texts(request: Request, rows: Sequence[Row]) -> bool:
    """Return whether a text encoder is needed: not where embeddings stand for the prompts of all rows."""
    stands = {"positive": request.prompt_embeds, "negative": request.negative_prompt_embeds}
    return any(stands[row.prompt] is None for row in rows)


def encode_sides(
    sides: Sequence[Side], engines: LazyEngines, tokenizers: Mapping[str, Tokenizer], *, xl: bool
) -> Conditioning:
    """Encode the texts of all sides in one call, and put embeddings in their places.

    Args:
        sides: Those of each row of guidance, in order.
        engines: Those of a pipeline: the text encoders are opened where there is a text.
        tokenizers: By name: "tokenizer" and "tokenizer_2".
        xl: The network is SDXL's, see `encode`.

    Raises:
        InvalidRequest: Embeddings differ in shape, or lack pooled ones.
    """
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
