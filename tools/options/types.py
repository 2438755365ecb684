"""Types of the options of `ldmrt generate`."""

import json
from pathlib import Path

import click

from .images import ImagePath


class Control(click.ParamType):
    """An option of the form NAME=IMAGE or NAME=IMAGE:SCALE."""

    name = "name=image[:scale]"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[str, float]]:
        """Split into the name, the image's path and the scale, 1 by default."""
        name, equals, rest = value.partition("=")
        image, colon, scale = rest.rpartition(":")
        try:
            number = float(scale) if colon else 1.0
        except ValueError:  # the colon belongs to the path
            image, number = rest, 1.0
        if not equals or not name or not rest:
            self.fail(f"{value!r} is not NAME=IMAGE or NAME=IMAGE:SCALE, such as canny=edges.png:0.8", param, ctx)
        return name, ((image or rest) if colon else rest, number)


class Interval(click.ParamType):
    """An option that takes two numbers, LOW,HIGH."""

    name = "low,high"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        """Return the two numbers."""
        low, _, high = str(value).partition(",")
        try:
            return float(low), float(high)
        except ValueError:
            self.fail(f"{value!r} is not LOW,HIGH, such as 0.3,5", param, ctx)


class Layers(click.ParamType):
    """An option that takes numbers of layers, such as 7,8,9."""

    name = "n,n,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the numbers."""
        if isinstance(value, tuple):
            return value
        words = str(value).split(",")
        if not all(word.isascii() and word.isdigit() and len(word) < 5 for word in words):
            self.fail(f"{value!r} is no list of layers, such as 7,8,9", param, ctx)
        return tuple(map(int, words))


class Seeds(click.ParamType):
    """An option that takes seeds, such as 1,5."""

    name = "n,n,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the seeds."""
        words = str(value).split(",")
        if not all(word.isascii() and word.isdigit() and len(word) < 21 for word in words):
            self.fail(f"{value!r} is no list of seeds, such as 1,5", param, ctx)
        return tuple(map(int, words))


class Sides(click.ParamType):
    """An option that takes pixels on four sides, LEFT,TOP,RIGHT,BOTTOM."""

    name = "left,top,right,bottom"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int, int, int]:
        """Return the four numbers."""
        words = str(value).split(",")
        if len(words) != 4 or not all(word.isascii() and word.isdigit() and len(word) < 9 for word in words):
            self.fail(f"{value!r} is not LEFT,TOP,RIGHT,BOTTOM, such as 0,0,64,0", param, ctx)
        left, top, right, bottom = map(int, words)
        return left, top, right, bottom


class BlockScales(click.ParamType):
    """An option that takes a number, or a JSON object of numbers by block."""

    name = "number|json"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        """Return a number, or a dict, which the request checks."""
        try:
            found = json.loads(str(value)) if not isinstance(value, (float, dict)) else value
        except ValueError:
            found = None
        if isinstance(found, bool) or not isinstance(found, (int, float, dict)):
            self.fail(
                f"""{value!r} is neither a number nor JSON such as {{"up": {{"block_0": [0, 1, 0]}}}}""", param, ctx
            )
        return found


class Text(click.ParamType):
    """The text of a prompt: UTF-8, also where the system's own encoding is narrower, such as ASCII."""

    name = "text"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text that the argument's bytes are in UTF-8."""
        try:
            return str(value).encode("utf-8", "surrogateescape").decode()
        except UnicodeError:  # the request reports it
            return str(value)


class Batch(click.ParamType):
    """A number of images, or auto, which becomes None."""

    name = "n|auto"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return the number; None for auto."""
        if value == "auto":
            return None
        return click.IntRange(min=1)(value, param, ctx)


class ByStage(click.ParamType):
    """A value for every stage of a cascade, or STAGE=VALUE,STAGE=VALUE."""

    def __init__(self, kind: click.ParamType) -> None:
        """Take the type of one value."""
        self.kind, self.name = kind, kind.name

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        """Return the value, or a dict of values by stage."""
        if not isinstance(value, str) or "=" not in value:
            return self.kind.convert(value, param, ctx)
        pairs = [part.partition("=") for part in value.split(",")]
        if not all(name and equals for name, equals, _ in pairs) or len({name for name, *_ in pairs}) < len(pairs):
            self.fail(f"{value!r} is not one value, or STAGE=VALUE,STAGE=VALUE, such as base=50,upscale=20", param, ctx)
        return {name: self.kind.convert(each, param, ctx) for name, _, each in pairs}


IMAGE = ImagePath(exists=True, dir_okay=False, path_type=Path)
SIZE = click.Tuple([int, int])
