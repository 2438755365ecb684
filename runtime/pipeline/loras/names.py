"""Name the LoRAs of a pipeline, as requests and prompts call them."""

import re
from collections.abc import Collection, Mapping

from ldmrt.runtime.errors import InvalidRequest, Place
from ldmrt.runtime.nearest import suggestion
from ldmrt.runtime.pipeline.request.checks import Number, short

NAME = re.compile(r"[^<>:,\s](?:[^<>:,]*[^<>:,\s])?")  # by which a prompt can name a file
LOAD = "--lora FILE of ldmrt generate, batch and serve, or pipeline.load_lora(FILE)"


def unknown(name: str, names: Collection[str], place: Place | None = None) -> InvalidRequest:
    """Make the error of a name that no loaded file has, which may stand in a prompt."""
    problem = f"no LoRA {name!r:.100} is loaded{suggestion(name, names)}"
    expected = ", ".join(names) or "one that was loaded"
    return InvalidRequest("prompt" if place else "lora", problem, expected=expected, hint=LOAD, place=place)


def by_name(name: str, value: object) -> dict[str, float]:
    """Check the weights of LoRAs by their names."""
    if not isinstance(value, Mapping) or any(not isinstance(each, str) for each in value):
        problem, expected = f"{name} holds no weights by name", "such as {'style': 0.8}"
        raise InvalidRequest("request", problem, expected=expected, found=short(value))
    return {each: Number()(f"weight of {each!r:.60} in loras", weight) for each, weight in value.items()}
