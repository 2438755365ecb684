"""Public functions that take or return arrays state shapes in their docstrings, such as (B, C, h, w)."""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

ARRAY = re.compile(r"\b(ndarray|Array|Arrays|Latents|Tensor)\b")
SHAPE = re.compile(r"\(\w+,\)|\(\w+(?:, ?[\w/*+ -]+)+\)")  # (B,) or (N, C, h/8, w)
DOORS = ("ldmrt.runtime", "ldmrt.model")


def public_functions(door: str) -> Iterator[tuple[str, Any]]:
    """The functions of a package's public names, and the methods and properties of its public classes."""
    module = import_module(door)
    for name in module.__all__:
        value = getattr(module, name)
        if not inspect.isclass(value):
            yield name, value
            continue
        for key, member in vars(value).items():
            if not key.startswith("_") or key == "__call__":
                yield f"{name}.{key}", getattr(member, "fget", None) or getattr(member, "__func__", member)


def with_arrays(door: str) -> dict[str, str]:
    """The docstrings of the functions whose annotations name an array, by the function's name."""
    found = {name: function for name, function in public_functions(door) if inspect.isfunction(function)}
    return {
        name: inspect.getdoc(function) or ""
        for name, function in found.items()
        if any(ARRAY.search(str(kind)) for kind in function.__annotations__.values())
    }


@pytest.mark.parametrize("door", DOORS)
def test_shapes_are_stated(door: str) -> None:
    assert [name for name, text in with_arrays(door).items() if not SHAPE.search(text)] == []


def test_functions_with_arrays_were_found() -> None:
    """The reader finds functions, methods and properties."""
    assert {"steps", "Pipeline.decode", "State.x0", "Result.pixels"} <= with_arrays("ldmrt.runtime").keys()
    assert "UNet.forward" in with_arrays("ldmrt.model")
