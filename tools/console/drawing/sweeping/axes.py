"""The axes of a sweep: options with several values each, and the cells that all their combinations are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import click

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.nearest import suggestion
from ldmrt.tools.options.types import ByStage, Interval, Layers, Text

MOST = 1000  # cells
ALSO = {"precision": "compute"}  # further names of options
WITH_COMMAS = (Text, Interval, Layers)  # types whose values hold commas


class Choice(NamedTuple):
    """One value of an axis, as it was written and as the command's option reads it."""

    text: str
    value: Any


@dataclass(frozen=True)
class Axis:
    """An option with the values that it takes in turn.

    Attributes:
        name: The option as the user writes it, without dashes, such as "deep-cache".
        parameter: The name of its value in the command, such as "deep_cache".
        choices: Its values, in their order.
        added: Whether the option may be repeated, so that a value stands beside those that it is given.
    """

    name: str
    parameter: str
    choices: tuple[Choice, ...]
    added: bool = False


class Cell(NamedTuple):
    """One image of a sweep: the number of the chosen value on each axis."""

    place: tuple[int, ...]

    def values(self, axes: Sequence[Axis], base: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a command's parameters: of each axis this cell's, of the others those of `base`."""
        own = {axis.parameter: (axis, axis.choices[i].value) for axis, i in zip(axes, self.place, strict=True)}
        return {**base, **{name: (*base[name], *value) if axis.added else value for name, (axis, value) in own.items()}}

    def texts(self, axes: Sequence[Axis]) -> dict[str, str]:
        """Return the value of each axis as it was written, by the axis's name."""
        return {axis.name: axis.choices[i].text for axis, i in zip(axes, self.place, strict=True)}

    def label(self, axes: Sequence[Axis]) -> str:
        """Name the cell by its values, such as "steps=20, scheduler=ddim"."""
        return ", ".join(f"{name}={text or 'none'}" for name, text in self.texts(axes).items())


def axes_of(written: Sequence[str], parameters: Mapping[str, click.Parameter]) -> list[Axis]:
    """Read axes of the form NAME=VALUE,VALUE. A name that comes again adds values; what holds commas itself is one.

    An empty value is no text, or an option that is not given; one before a comma is a value of its own everywhere.

    Args:
        written: The axes as they were given.
        parameters: The options that may vary, by their names without dashes.

    Raises:
        LdmrtError: An axis is not written so, nothing of this name varies, or a value is invalid or comes twice.
    """
    found: dict[str, list[str]] = {}
    for text in written:
        name, equals, values = text.partition("=")
        kind = parameters[name].type if name in parameters else None
        if not equals or not (values or isinstance(kind, Text)):
            raise LdmrtError(
                "sweep", f"--axis {text!r:.200} has no values", expected="NAME=VALUE,VALUE, as steps=5,10,20"
            )
        if name not in parameters:
            problem = f"--axis: nothing is called {name!r:.100}{suggestion(name, parameters)}"
            raise LdmrtError("sweep", problem, expected=", ".join(sorted(parameters)))
        whole = isinstance(kind, WITH_COMMAS) or (isinstance(kind, ByStage) and "=" in values)
        if whole and values.startswith(","):
            found.setdefault(name, []).append("")
            values = values[1:].lstrip()
        found.setdefault(name, []).extend([values] if whole else values.split(","))
    axes = list[Axis]()
    for name, texts in found.items():
        if len(set(texts)) < len(texts):
            raise LdmrtError("sweep", f"--axis {name} has a value twice", found=", ".join(texts))
        parameter = parameters[name]
        for other in axes:
            if other.parameter == parameter.name:
                raise LdmrtError("sweep", f"--axis {name} and {other.name} are one option", expected="only one of them")
        choices = tuple(Choice(text, _read(name, parameter, text)) for text in texts)
        axes.append(Axis(name, str(parameter.name), choices, parameter.multiple))
    return axes


def _read(name: str, parameter: click.Parameter, text: str) -> object:
    """Return a value as the option of this name reads it; an empty one of an option without a default is none."""
    if not text and isinstance(parameter, click.Option):
        if parameter.multiple:
            return ()
        if parameter.to_info_dict()["default"] is None:
            return None
    try:
        value = parameter.type.convert(text, parameter, None)
        return (value,) if parameter.multiple else value
    except click.BadParameter as error:
        raise LdmrtError("sweep", f"--axis {name}: {error.message}") from None


def cells_of(axes: Sequence[Axis]) -> list[Cell]:
    """Return all combinations of the values; those of the last axis change first.

    Raises:
        LdmrtError: They are more than `MOST`.
    """
    cells = [Cell(place) for place in product(*(range(len(axis.choices)) for axis in axes))]
    if len(cells) > MOST:
        raise LdmrtError("sweep", "too many cells", expected=f"at most {MOST}", found=len(cells), hint="fewer values")
    return cells


def reference_of(written: Sequence[str], axes: Sequence[Axis]) -> Cell:
    """Return the cell that the others are compared with: the first value of each axis, or NAME=VALUE of some axes.

    Raises:
        LdmrtError: A name is no axis, or a value is not on it.
    """
    place = [0] * len(axes)
    names = [axis.name for axis in axes]
    for text in written:
        name, _, value = text.partition("=")
        if name not in names:
            problem = f"--reference: no axis is called {name!r:.100}{suggestion(name, names)}"
            raise LdmrtError("sweep", problem, expected=", ".join(names))
        index = names.index(name)
        texts = [choice.text for choice in axes[index].choices]
        if value not in texts:
            raise LdmrtError(
                "sweep", f"--reference: {value!r:.100} is not on the axis {name}", expected=", ".join(texts)
            )
        place[index] = texts.index(value)
    return Cell(tuple(place))


def options_of(command: click.Command, without: Sequence[str] = ()) -> dict[str, click.Parameter]:
    """Return what may be an axis of a command's options and arguments, by names without dashes and those of `ALSO`."""
    found = {
        _name(one): one for one in command.params if _name(one) not in without and not getattr(one, "is_flag", False)
    }
    return {**found, **{name: found[other] for name, other in ALSO.items() if other in found}}


def _name(parameter: click.Parameter) -> str:
    """Return the long name of an option without dashes, or the name of an argument."""
    return max(parameter.opts, key=len).lstrip("-")
