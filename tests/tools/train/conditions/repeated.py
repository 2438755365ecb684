"""A run by command, the same run stopped and resumed, and the same run by its recipe."""

from pathlib import Path
from typing import Any

from ...console.records.cards import card_of

WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


def assert_repeats(ldmrt: Any, words: tuple[object, ...], folder: Path, change: tuple[object, ...]) -> Path:
    """All three write the same weights, and the first two the same card; a resumed run refuses the options `change`.

    Returns the first run's folder.
    """
    whole, parts, recipe = (folder / name for name in ("whole", "parts", "recipe"))
    words = (*words, "--schedule", "constant", "--accumulate", 2)
    ran = ldmrt(*words, "--steps", 4, "--out", whole)
    assert ran.code == 0, ran.err
    assert ldmrt(*words, "--steps", 2, "--out", parts).code == 0
    refused = ldmrt(*words, "--steps", 4, "--out", parts, "--resume", *change)
    assert (refused.code, str(change[0]).lstrip("-") in refused.error) == (2, True)
    assert ldmrt(*words, "--steps", 4, "--out", parts, "--resume").code == 0
    repeated = ldmrt("train", whole / "recipe.toml", "--out", recipe)
    assert repeated.code == 0, repeated.err
    for again in (parts, recipe):
        assert (again / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert card_of(parts).replace("parts", "whole") == card_of(whole)
    plots = [(each / "training" / "loss.png").read_bytes() for each in (parts, whole)]
    assert plots[0] == plots[1]
    return whole


def words_of(task: str, source: Path, pictures: Path, out: Path, *more: object) -> tuple[object, ...]:
    """A training of two steps from a checkpoint."""
    words = ("train", task, "--from", source, "--data", pictures, "--size", 16, "--batch", 2, "--steps", 2)
    return (*words, "--warmup", 0, "--learning-rate", 1e-2, "--previews", 2, "--out", out, *more)
