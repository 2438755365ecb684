"""A request from a command's options, whose short words stand in `ldmrt.runtime.pipeline.request.field_names`."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ldmrt.runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from ldmrt.runtime.pipeline.request.request import Request


BY_STAGE = ("steps", "guidance", "scheduler")  # options that may have a value for each stage


def request_of(values: Mapping[str, Any]) -> "Request":
    """Make a request of a command's values, by their short words.

    Raises:
        InvalidRequest: A value is invalid; the error names the command's option, such as --steps.
    """
    from ldmrt.runtime.pipeline.request.field_names import SHORT, from_short
    from ldmrt.runtime.pipeline.request.request import Request

    try:
        return Request(**from_short(_by_stage(values)))
    except InvalidRequest as error:
        params = click.get_current_context().command.params
        options = {param.name: param.opts[-1] for param in params if isinstance(param, click.Option)}
        names = {name: options[short] for name, short in SHORT.items() if short in options}
        raise InvalidRequest(
            error.where,
            _renamed(error.problem, names),
            expected=error.expected and _renamed(error.expected, names),
            found=error.found,
            hint=error.hint,
        ) from None


def _by_stage(values: Mapping[str, Any]) -> dict[str, Any]:
    """Move values by stage into the field `stages`; the option's default stands in their place."""
    from ldmrt.runtime.pipeline.request.field_names import from_short

    stages: dict[str, dict[str, Any]] = {}
    for short in BY_STAGE:
        for stage, value in values[short].items() if isinstance(values.get(short), dict) else ():
            stages.setdefault(stage, {}).update(from_short({short: value}))
    plain = {name: value for name, value in values.items() if not (name in BY_STAGE and isinstance(value, dict))}
    return plain | ({"stages": stages} if stages else {})


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """Replace the names of a request's fields by those of the options."""
    return re.sub(r"\b[a-z]\w*", lambda word: names.get(word[0], word[0]), text)
