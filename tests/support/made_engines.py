"""Engines for a bundle's U-Net that hold a few bytes in place of a plan."""

from dataclasses import replace
from typing import Any

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.engine_key import Range, Recipe
from ldmrt.runtime.bundle.engines.store import FOLDER, EngineFile, model_digests, write_engine

SHAPES = {"sample": (2, 4, 8, 8), "timestep": (2,), "encoder_hidden_states": (2, 16, 24)}
VERSION = "1.7.1.116"


def static(shapes: dict[str, Any]) -> dict[str, Range]:
    return {name: Range(shape, shape, shape) for name, shape in shapes.items()}


def recipe(opened: Bundle, component: str = "unet", **changes: Any) -> Recipe:
    graph, weights = model_digests(opened, component)
    precision = opened.precision(component)
    made = Recipe(component, graph, weights, precision, "tensorrt-rtx", VERSION, "sm89", (static(SHAPES),), ("a flag",))
    return replace(made, **changes)


def put(opened: Bundle, made: Recipe, plan: bytes = b"a plan") -> EngineFile:
    return write_engine(opened.path / FOLDER, made, plan, {"scratch": 5})
