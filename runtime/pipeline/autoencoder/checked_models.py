"""Find the safety checker among the models that make an image together."""

from collections.abc import Sequence
from typing import Protocol

from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.bundle.graphs import SAFETY_CHECKER

from .decode import Decoding
from .safety import OFF


class CheckedModel(Protocol):
    """A model whose bundle may hold a safety checker: its engines, and what becomes of flagged images."""

    @property
    def engines(self) -> LazyEngines:
        """The networks by name."""

    @property
    def decoding(self) -> Decoding:
        """How latents are decoded; `safety` is one of `SAFETY`."""


def checker_of(models: Sequence[CheckedModel]) -> CheckedModel | None:
    """Return the model whose safety checker looks at the images of all: the last that has one and is not off."""
    able = (each for each in reversed(models) if SAFETY_CHECKER in each.engines and each.decoding.safety != OFF)
    return next(able, None)
