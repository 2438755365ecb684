"""Encode prompts: each text once, by all text encoders, as the network's embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.bundle.stages import JOINT, LONG, MASKED_KINDS, Row, Source
from ldmrt.runtime.errors import InvalidRequest, LdmrtError, NotFinite
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.tensors import Array, Engine
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

from .masked import encode_masked, tokens_read

POOLED = ("text_embeds", "pooler_output")  # CLIP's pooled embedding, with a projection or without; T5 has none
ATTENTION_MASK = "attention_mask"  # an input of text encoders that were exported for long prompts
Texts = tuple[str | None, ...]  # one for each text encoder; None is the empty word that SDXL takes as zeros


@dataclass(frozen=True)
class Conditioning:
    """Holds the embeddings of the prompts of all rows."""

    context: Array  # (N, tokens, width), float32
    pooled: Array | None = None  # (N, projection), float32: SDXL, Stable Diffusion 3 and FLUX.1
    mask: Array | None = None  # (N, tokens), float32, 1 for each token of the prompt: PixArt and Sana


@dataclass(frozen=True)
class Side:
    """The prompts of one row of guidance: as texts, or as embeddings that stand for them."""

    texts: Sequence[Texts]
    skip: int  # layers
    context: Array | None
    pooled: Array | None
    mask: Array | None = None
    prefix: str = ""  # of the fields of its embeddings

    @classmethod
    def of(cls, request: Request, row: Row, *, zeros: bool) -> "Side":
        """Return the prompts, or the negative prompts, of a request; with `zeros` absent negative ones become zeros."""
        positive = row.prompt == "positive"
        texts = request.texts if positive else request.negative_texts(zeros=zeros)
        skip = request.clip_skip if positive else request.negative_clip_skip
        prefix = "" if positive else "negative_"
        names = ("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask")
        arrays = (request.embeddings(f"{prefix}{name}") for name in names)
        context, pooled, mask = arrays
        return cls(texts, skip or 0, context, pooled, mask, prefix)


def text_encoders(engines: LazyEngines) -> list[str]:
    """Return the names of the text encoders."""
    return [name for name in engines if name.startswith("text_encoder")]


def reads_texts(request: Request, rows: Sequence[Row]) -> bool:
    """Return whether a text encoder is needed: not where embeddings stand for the prompts of all rows."""
    stands = {"positive": request.prompt_embeds, "negative": request.negative_prompt_embeds}
    return any(stands[row.prompt] is None for row in rows)


def encode_sides(
    sides: Sequence[Side], engines: LazyEngines, tokenizers: Mapping[str, Tokenizer], source: Source
) -> Conditioning:
    """Encode the texts of all sides in one call, and put embeddings in their places.

    Args:
        sides: Those of each row of guidance, in order.
        engines: Those of a pipeline: the text encoders are opened where there is a text.
        tokenizers: By name: "tokenizer", "tokenizer_2" and "tokenizer_3".
        source: Says how the network reads the prompt, see `encode`.

    Raises:
        InvalidRequest: Embeddings differ in shape, or lack pooled ones or a mask.
    """
    read, pools = [side for side in sides if side.context is None], gives_pooled(source)
    encoded = None
    if read:
        encoders = {name: engines[name] for name in text_encoders(engines)}
        encoded = _encode_texts(read, encoders, tokenizers, source)
        if len(read) == len(sides):
            return encoded
    contexts, pooled, masks, place = list[Array](), list[Array](), list[Array](), 0
    for side in sides:
        if side.context is None and encoded is not None:
            mine = slice(place, place + len(side.texts))
            place = mine.stop
            contexts.append(encoded.context[mine])
            pooled += [] if encoded.pooled is None else [encoded.pooled[mine]]
            masks += [] if encoded.mask is None else [encoded.mask[mine]]
        elif side.context is not None:
            contexts.append(side.context)
            if pools and side.pooled is None:
                problem = "prompt embeddings without pooled ones, which this model asks for"
                raise InvalidRequest("request", problem, expected=f"{side.prefix}pooled_prompt_embeds (prompts, width)")
            pooled += [side.pooled] if pools and side.pooled is not None else []
            if source.kind in MASKED_KINDS and side.mask is None:
                problem = "prompt embeddings without a mask, which this model asks for"
                expected = f"{side.prefix}prompt_attention_mask (prompts, tokens)"
                raise InvalidRequest("request", problem, expected=expected)
            masks += [] if side.mask is None else [side.mask]
    if len({context.shape[1:] for context in contexts}) > 1:
        shapes = " and ".join(str(context.shape) for context in contexts)
        raise InvalidRequest("request", "negative and positive embeddings differ in shape", found=shapes)
    joined = (np.concatenate(arrays) if arrays else None for arrays in (pooled, masks))
    return Conditioning(np.concatenate(contexts), *joined)


def _encode_texts(
    sides: Sequence[Side], encoders: Mapping[str, Engine], tokenizers: Mapping[str, Tokenizer], source: Source
) -> Conditioning:
    """Encode the texts of these sides, each text once."""
    texts = [text for side in sides for text in side.texts]
    if source.kind in MASKED_KINDS:
        (name,) = encoders
        positive = [not side.prefix for side in sides for _ in side.texts]
        first = [text[0] or "" for text in texts]
        context, mask = encode_masked(encoders[name], tokenizers["tokenizer"], first, positive, source)
        return Conditioning(_finite(context), mask=mask)
    return encode(encoders, tokenizers, texts, [side.skip for side in sides for _ in side.texts], source)


def gives_pooled(source: Source) -> bool:
    """Tell whether the network reads a pooled embedding beside the prompt, as SDXL's and the transformers do."""
    return source.kind in (JOINT, LONG) or bool(source.settings.get("penultimate"))


def tokens_of(tokenizer: Tokenizer, source: Source | None) -> int | None:
    """Return how many tokens a text encoder reads, where they are not those of the tokenizer: T5's and Gemma's."""
    if source is None or not tokenizer.any_length or "tokens" not in source.settings:
        return None
    return tokens_read(tokenizer, source)


def encode(
    encoders: Mapping[str, Engine], tokenizers: Mapping[str, Tokenizer], texts: Sequence[Texts], skips: Sequence[int],
    source: Source,
) -> Conditioning:  # fmt: skip
    """Encode texts, each once.

    Stable Diffusion 1 and 2 take the last hidden state; SDXL the last but one of all its encoders side by side, and the
    last encoder's pooled embedding. Stable Diffusion 3 takes those of CLIP, filled up with zeros to the width of T5's
    last hidden state, which follows them, and the pooled embeddings side by side (Esser et al. 2024, appendix B.3).
    FLUX.1 takes T5's last hidden state, and CLIP's pooled embedding without a projection.

    Args:
        encoders: The text encoders, in their order.
        tokenizers: By name: "tokenizer", "tokenizer_2" and "tokenizer_3".
        texts: For each image a text for each encoder; the last one is for all that follow.
        skips: For each image, how many more of CLIP's last layers are skipped.
        source: Says how the network reads the prompt: of one of `PROMPT_KINDS`, but of none of `MASKED_KINDS`.
    """
    layered, states, pooled = gives_pooled(source), list[tuple[bool, Array]](), list[Array]()
    for i, (name, engine) in enumerate(encoders.items()):
        tokenizer = tokenizers[name.replace("text_encoder", "tokenizer")]
        own = [one[min(i, len(one) - 1)] for one in texts]
        unique = list(dict.fromkeys(text or "" for text in own))
        clip = not tokenizer.any_length  # or BERT, whose states are read as CLIP's
        ids = tokenizer(unique, tokens_of(tokenizer, source))
        masked = any(spec.name == ATTENTION_MASK for spec in engine.inputs)
        out = engine(input_ids=ids, **({ATTENTION_MASK: np.ones_like(ids)} if masked else {}))
        places = [unique.index(text or "") for text in own]
        empty = np.array([text is None for text in own])
        pool = POOLED[source.kind == LONG]
        if layered and pool in out:
            projected = out[pool][places].astype(np.float32, copy=False)
            pooled.append(np.where(empty[:, None], np.float32(0), projected))
        if source.kind == LONG and clip:
            continue  # its states are not read
        taken = skips if clip else [0] * len(skips)  # T5's last state is taken as it is
        layers = {skip: out[state_name(name, out, layered and clip, skip)] for skip in set(taken)}
        rows = [layers[skip][place] for skip, place in zip(taken, places, strict=True)]
        state = np.stack(rows).astype(np.float32, copy=False)
        states.append((clip, np.where(empty[:, None, None], np.float32(0), state) if empty.any() else state))
    context = np.concatenate([state for clip, state in states if clip or source.kind == LONG], axis=-1)
    if source.kind == JOINT:
        context = _joint(context, [state for clip, state in states if not clip], source)
    if not layered:
        return Conditioning(_finite(context))
    if not pooled:
        problem = "no encoder gives text_embeds, which this network asks for"
        raise LdmrtError("text_encoder", problem, hint="export again")
    return Conditioning(_finite(context), np.concatenate(pooled, axis=-1) if source.kind == JOINT else pooled[-1])


def _finite(context: Array) -> Array:
    if not np.isfinite(context).all():
        raise NotFinite("text_encoder", "the context is not finite", hint="check the checkpoint's weights")
    return context


def _joint(clip: Array, t5: Sequence[Array], source: Source) -> Array:
    """Fill CLIP's states up with zeros, and put T5's behind them; zeros where the model has no T5."""
    width, tokens = int(source.setting("width")), int(source.setting("tokens"))
    wide = np.pad(clip, ((0, 0), (0, 0), (0, width - clip.shape[-1])))
    return np.concatenate([wide, *(t5 or [np.zeros((len(clip), tokens, width), np.float32)])], axis=1)


def state_name(name: str, out: Mapping[str, Array], layered: bool, skip: int) -> str:
    """Return the name of the text encoder's output that is the context."""
    if layered:
        layers = sum(output.startswith("hidden_states.") for output in out)
        wanted = f"hidden_states.{layers - 2 - skip}"
    else:
        wanted = f"last_hidden_state.{skip}" if skip else "last_hidden_state"
    if wanted not in out:
        raise LdmrtError(
            name, f"cannot skip {skip} layers", expected="a smaller clip_skip", found=f"no output {wanted}"
        )
    return wanted
