"""Compare a transformer's pipelines with diffusers' own, both from one checkpoint."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.runtime import Pipeline

# Relative to the largest latent: two programs' float32 through a handful of rows, with guidance.
TOLERANCE = 2e-4


class Saved(dict[str, Path]):
    """Maps names to the folders of checkpoints, each of which is saved when it is first asked for."""

    def __init__(self, save: Callable[[str, Path], Path], root: Path, **there: Path) -> None:
        super().__init__(there)
        self.save, self.root = save, root

    def __missing__(self, name: str) -> Path:
        self[name] = self.save(name, self.root / name)
        return self[name]


@cache
def theirs(folder: Path, kind: str) -> Any:
    """Return diffusers' own pipeline, which has to be told of a missing T5."""
    import diffusers

    lacking = kind.startswith("StableDiffusion3") and not (folder / "text_encoder_3").is_dir()
    absent = {"text_encoder_3": None, "tokenizer_3": None} if lacking else {}
    pipeline = getattr(diffusers, kind).from_pretrained(folder, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@cache
def ours_of(folder: Path) -> Pipeline:
    """Return our pipeline of PyTorch's networks."""
    return torch_pipeline(load(folder))


def close(ours: NDArray[Any], expected: NDArray[Any]) -> None:
    assert expected.std() > 0.1
    assert np.abs(ours - expected).max() <= TOLERANCE * np.abs(expected).max()
