"""Types of the options of `ldmrt generate`."""

from pathlib import Path
from typing import Any

import click

from .images import ImagePath


class Control(click.ParamType):
    """Reads NAME=IMAGE or NAME=IMAGE:SCALE."""

    name = "name=image[:scale]"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, tuple[str, float]]:
        name, equals, rest = value.partition("=")
        picture, colon, scale = rest.rpartition(":")
        try:
            number = float(scale) if colon else 1.0
        except ValueError:  # the colon belongs to the path
            picture, number = rest, 1.0
        if not equals or not name or not rest:
            self.fail(f"{value!r} is not NAME=IMAGE or NAME=IMAGE:SCALE, such as canny=edges.png:0.8", param, ctx)
        return name, ((picture or rest) if colon else rest, number)


class Interval(click.ParamType):
    """Reads LOW,HIGH."""

    name = "low,high"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, float]:
        low, _, high = str(value).partition(",")
        try:
            return float(low), float(high)
        except ValueError:
            self.fail(f"{value!r} is not LOW,HIGH, such as 0.3,5", param, ctx)


class Text(click.ParamType):
    """Text of a prompt: UTF-8, also where the system's own encoding is a narrower one, such as ASCII."""

    name = "text"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        try:
            return str(value).encode("utf-8", "surrogateescape").decode()
        except UnicodeError:  # the request says what is wrong with it
            return str(value)


class Batch(click.ParamType):
    """A number of images, or auto, which is None."""

    name = "n|auto"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | None:
        if value == "auto":
            return None
        return click.IntRange(min=1).convert(value, param, ctx)


IMAGE = ImagePath(exists=True, dir_okay=False, path_type=Path)
SIZE = click.Tuple([int, int])
