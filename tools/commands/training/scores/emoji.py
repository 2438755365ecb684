"""Measure how often images show the emoji and the background that their prompts ask for."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.tools.console.progress import watched
from ldmrt.tools.emoji.dataset import Emoji, Sprite, load_sprites
from ldmrt.tools.emoji.scoring import References
from ldmrt.tools.options.to_request import request_of

from .autoencoder import BATCH, reconstructed

Scores = dict[str, dict[str, float]]


def emoji_scores(
    pipeline: Pipeline,
    bundle: Path,
    folder: Path,
    style: str,
    groups: Sequence[str],
    count: int,
    threads: int = 0,
    *,
    seed: int = 0,
    **asked: object,
) -> tuple[Scores, dict[str, float]]:
    """Draw images of prompts for emoji, and recognise the background and the emoji in them.

    Args:
        pipeline: The model.
        bundle: Its folder.
        folder: The sprites that `ldmrt data emoji` has built.
        style: The style of the emoji.
        groups: Their groups; all if empty.
        count: How many trained pairs of emoji and background, and how many held-out ones.
        threads: CPU threads of ONNX Runtime; 0 takes one per core.
        seed: Which pairs, and the seed of the first image; the next ones count up.
        asked: Other options of the request, by their short words.

    Returns:
        By the kind of pairs the shares of images whose background and whose emoji are right; and the autoencoder's PSNR
        in dB over some images of held-out pairs, and of how many.
    """
    references = References(*_of_style(folder, style))
    scores: Scores = {}
    for title, subset in (("trained pairs", "train"), ("held-out pairs", "held-out")):
        pairs = Emoji.open(folder, styles=[style], groups=groups, subset=subset).pairs
        chosen = [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))[:count]]
        recognised = []
        batches = [range(i, min(i + BATCH, len(chosen))) for i in range(0, len(chosen), BATCH)]
        for rows in watched(batches, len(batches), lambda rows: f"images to {rows.stop}"):
            prompts = [Emoji.prompt(*chosen[i]) for i in rows]
            seeds = [seed + i for i in rows]
            words = {"prompt": prompts, "seed": seeds, **asked}
            result = pipeline.generate(request_of(words))
            recognised += [references.identify(image) for image in result.pixels]
        scores[title] = score(chosen, recognised)
        if subset == "train":
            scores["trained pairs, shuffled prompts"] = score([*chosen[1:], chosen[0]], recognised)
    shown = [Emoji.compose(references.pictures, *pair) for pair in chosen[:100]]
    pictures = np.stack(shown)
    error = np.square(reconstructed(bundle, pictures, threads) - pictures).mean(axis=(1, 2, 3))
    psnr = float(np.mean(10 * np.log10(255**2 / error)))
    return scores, {"pictures": len(shown), "psnr": psnr}


def score(prompts: Sequence[tuple[Sprite, str]], recognised: Sequence[tuple[str, Sprite]]) -> dict[str, float]:
    """Return the shares of images whose background and whose emoji are those of the prompt.

    Args:
        prompts: The (sprite, background) of each prompt.
        recognised: The (background, sprite) of each image.
    """
    background = np.mean([b == name for (_, b), (name, _) in zip(prompts, recognised, strict=True)])
    identity = np.mean([s.code == sprite.code for (s, _), (_, sprite) in zip(prompts, recognised, strict=True)])
    return {"pictures": len(prompts), "background": float(background), "identity": float(identity)}


def _of_style(folder: Path, style: str) -> tuple[NDArray[np.uint8], list[Sprite]]:
    """Load the pixels of all sprites, and the sprites of one style."""
    pictures, sprites = load_sprites(folder)
    return pictures, [sprite for sprite in sprites if sprite.style == style]
