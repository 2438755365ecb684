"""A request from a command's options, whose short words stand in `ldmrt.runtime.pipeline.request.field_names`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ldmrt.runtime.pipeline.request.request import Request


def request_of(values: Mapping[str, Any]) -> "Request":
    """Make a request of a command's values, by their short words.

    Raises:
        InvalidRequest: A value is invalid; the error names the command's option, such as --steps.
    """
    from ldmrt.runtime.pipeline.request.field_names import SHORT
    from ldmrt.runtime.pipeline.request.short_words import request_of_words

    options = flags()
    return request_of_words(values, {name: options[short] for name, short in SHORT.items() if short in options})


def flags() -> dict[str, str]:
    """Return the options of the command that runs, such as --steps, by the names of its values; none outside one."""
    context = click.get_current_context(silent=True)
    params = context.command.params if context else ()
    return {str(param.name): param.opts[-1] for param in params if isinstance(param, click.Option)}
