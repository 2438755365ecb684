"""Encode prompts for networks that do not see what fills a prompt up: PixArt's, Sana's and Z-Image's."""

from collections.abc import Sequence

import numpy as np

from ldmrt.runtime.bundle.stages import CHAT, INSTRUCTED, Source
from ldmrt.runtime.tensors import Array, Engine
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer


def tokens_read(tokenizer: Tokenizer, source: Source) -> int:
    """Return how many tokens a text encoder reads: those of a prompt, and those of an instruction before it.

    Two of the instruction's are the prompt's too, as in diffusers: the start, and the last one.
    """
    tokens = int(source.setting("tokens"))
    return tokens if source.kind != INSTRUCTED else tokens + _instruction_tokens(tokenizer, source) - 2


def encode_masked(
    encoder: Engine, tokenizer: Tokenizer, texts: Sequence[str], positive: Sequence[bool], source: Source
) -> tuple[Array, Array]:
    """Encode texts in small letters, as diffusers' pipelines do where bs4 or ftfy is missing; each is encoded once.

    Of a text behind an instruction the network reads the state of the first token, and those of the last ones. Negative
    prompts have no instruction: the encoder's tokens do not see those after them, so their states are the first ones.

    Args:
        encoder: The text encoder.
        tokenizer: Its tokenizer.
        texts: A text for each image.
        positive: Whether a text is a prompt, and not a negative one.
        source: Says how many tokens the network reads, and the instruction: of one of `MASKED_KINDS`.

    Returns:
        The states (N, tokens, width), and 1 for each token of a text, 0 for what fills it up, (N, tokens); float32.
    """
    if source.kind == CHAT:
        return _encode_chat(encoder, tokenizer, texts, source)
    tokens, read = int(source.setting("tokens")), tokens_read(tokenizer, source)
    instructed = source.kind == INSTRUCTED
    asked = [(text.lower().strip(), instructed and prompt) for text, prompt in zip(texts, positive, strict=True)]
    unique = list(dict.fromkeys(asked))
    ids = np.full((len(unique), read), tokenizer.pad, np.int64)
    taken = np.tile(np.arange(tokens), (len(unique), 1))
    for behind in {told for _, told in unique}:
        rows = [row for row, (_, told) in enumerate(unique) if told is behind]
        own = [unique[row][0] for row in rows]
        if behind:
            instruction, ahead = str(source.setting("instruction")), _instruction_tokens(tokenizer, source) - 1
            ids[rows] = tokenizer([instruction + text for text in own], read, ahead)
            taken[rows, 1:] = np.arange(read - tokens + 1, read)
        else:
            ids[rows, :tokens] = tokenizer(own, tokens)
    states = encoder(input_ids=ids)["last_hidden_state"].astype(np.float32, copy=False)
    places, row = [unique.index(one) for one in asked], np.arange(len(unique))[:, None]
    mask = (ids != tokenizer.pad)[row, taken].astype(np.float32)
    return states[row, taken][places], mask[places]


def _encode_chat(encoder: Engine, tokenizer: Tokenizer, texts: Sequence[str], source: Source) -> tuple[Array, Array]:
    """Encode texts as they are, each within the template of a chat.

    The encoder's tokens do not see those after them, so what fills a text up changes nothing.
    """
    tokens, (before, _, behind) = int(source.setting("tokens")), str(source.setting("template")).partition("{}")
    unique = list(dict.fromkeys(texts))
    chats, ahead = [before + text + behind for text in unique], len(tokenizer.pieces(before))
    (states,) = encoder(input_ids=tokenizer(chats, tokens, ahead, behind)).values()
    places = [unique.index(text) for text in texts]
    mask = np.arange(tokens) < np.array(tokenizer.lengths(chats))[:, None]
    return states.astype(np.float32, copy=False)[places], mask.astype(np.float32)[places]


def _instruction_tokens(tokenizer: Tokenizer, source: Source) -> int:
    """Count the tokens of an instruction, with the start."""
    return tokenizer.lengths([str(source.setting("instruction"))])[0]
