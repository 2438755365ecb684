"""Train a BPE vocabulary in CLIP's format on captions, once: training it again gives another one."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.tokenizer.tokenizer import clip_bpe
from ldmrt.runtime.tokenizer.vocabulary import END, START


def train_tokenizer(captions: Iterable[str], *, entries: int, length: int) -> dict[str, bytes]:
    """Train a tokenizer (byte-pair encoding: Sennrich et al. 2016, arXiv:1508.07909).

    The vocabulary has CLIP's order: 256 bytes, the same at a word's end, the merges, start and end. So the end token
    has the highest id, on which old CLIP configs rely.

    Args:
        captions: The texts to learn from.
        entries: Size of the vocabulary, at least 514.
        length: Tokens of a prompt, start and end included.

    Returns:
        The files of a tokenizer folder, name to content.

    Raises:
        LdmrtError: There are too few entries for the bytes, start and end.
    """
    if entries < 514:
        raise LdmrtError(
            "tokenizer", "too few entries", expected="at least 514: the bytes, start and end", found=entries
        )
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())  # the printable characters that stand for the 256 bytes
    alphabet = [*symbols, *(symbol + "</w>" for symbol in symbols)]
    pipeline = clip_bpe({token: i for i, token in enumerate([*alphabet, START, END])}, [])

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = pipeline.normalizer, pipeline.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        min_frequency=2,
        end_of_word_suffix="</w>",
        initial_alphabet=symbols,
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    learned = json.loads(learner.to_str())["model"]["merges"]
    merges = [(left, right) for left, right in learned][: entries - len(alphabet) - 2]
    tokens = dict.fromkeys([*alphabet, *(a + b for a, b in merges), START, END])
    vocab = {token: i for i, token in enumerate(tokens)}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
    }
    return {
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]).encode(),
        "tokenizer.json": clip_bpe(vocab, merges).to_str(pretty=True).encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
        "vocab.json": json.dumps(vocab, ensure_ascii=False).encode(),
    }
