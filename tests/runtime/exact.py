"""diffusers' own schedulers, computed in float64: their source with float32 written as float64."""

import importlib
import importlib.util
import re
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray


@cache
def _module(name: str) -> ModuleType:
    """The module of a scheduler, in float64."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    with open(spec.origin, encoding="utf-8") as file:
        source = re.sub(r"float32", "float64", file.read())
    module = ModuleType(f"{name}_float64")
    module.__package__ = "diffusers.schedulers"
    module.__file__ = spec.origin
    exec(compile(source, spec.origin, "exec"), module.__dict__)  # noqa: S102
    return module


def scheduler_class(class_name: str, *, float64: bool = True) -> Any:
    """A scheduler class of diffusers."""
    import diffusers

    theirs = getattr(diffusers, class_name)
    return getattr(_module(theirs.__module__), class_name) if float64 else theirs


class Drawn:
    """Stands for `randn_tensor` in a scheduler's module: the noise of the row that is being computed."""

    def __init__(self, noise: NDArray[np.float64]) -> None:
        self.noise, self.row = noise, 0

    def __call__(self, *_: Any, **__: Any) -> Any:
        import torch

        return torch.from_numpy(self.noise[self.row])
