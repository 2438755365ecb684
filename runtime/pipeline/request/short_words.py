"""Make a request of the short words of its fields, as options of commands and lines of files have them."""

import re
from collections.abc import Mapping
from typing import Any

from ldmrt.runtime.errors import InvalidRequest

from .field_names import from_short
from .request import Request

BY_STAGE = ("steps", "guidance", "scheduler")  # words that may have a value for each stage


def request_of_words(values: Mapping[str, Any], names: Mapping[str, str]) -> Request:
    """Make a request of values by their short words.

    Args:
        values: The values; those of `BY_STAGE` may be dicts by stage.
        names: What errors call the fields, such as --steps for `num_inference_steps`; others keep their names.

    Raises:
        InvalidRequest: A value is invalid, or two of them exclude one another.
    """
    try:
        return Request(**from_short(_by_stage(values)))
    except InvalidRequest as error:
        raise _in_words(error, names) from None


def _by_stage(values: Mapping[str, Any]) -> dict[str, Any]:
    """Move values by stage into the field `stages`; the field's default stands in their place."""
    stages: dict[str, dict[str, Any]] = {}
    for short in BY_STAGE:
        for stage, value in values[short].items() if isinstance(values.get(short), dict) else ():
            stages.setdefault(stage, {}).update(from_short({short: value}))
    plain = {name: value for name, value in values.items() if not (name in BY_STAGE and isinstance(value, dict))}
    return plain | ({"stages": stages} if stages else {})


def _in_words(error: InvalidRequest, names: Mapping[str, str]) -> InvalidRequest:
    """Return an error with other names of fields in it."""

    def renamed(text: str) -> str:
        return re.sub(r"\b[a-z]\w*", lambda word: names.get(word[0], word[0]), text)

    return InvalidRequest(
        error.where,
        renamed(error.problem),
        expected=error.expected and renamed(error.expected),
        found=error.found,
        hint=error.hint,
        place=error.place,
    )
