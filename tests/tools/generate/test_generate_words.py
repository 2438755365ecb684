"""Every field of a request is an option of `ldmrt generate`, by its short word and with the same default."""

import click
import pytest

from ldmrt.runtime import Request
from ldmrt.runtime.pipeline.request.field_names import FIELDS, SHORT
from ldmrt.tools.commands.generate import generate

# Python alone: functions, generators, arrays of a text encoder, the form of what is returned, and fields by stage, of
# which some options take a part as STAGE=VALUE.
PYTHON = {name for name in FIELDS if name.endswith(("_embeds", "_attention_mask"))} | {
    "generator",
    "output_type",
    "callback_on_step_end",
}
PYTHON |= {"stages", "image_latents"}
RENAMED = {"prompt": "prompts", "scheduler_settings": "settings"}  # prompts are arguments; settings are read by pairs
OPTIONS = {parameter.name: parameter for parameter in generate.params}


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in PYTHON])
def test_a_field_is_an_option(name: str) -> None:
    option = OPTIONS[RENAMED.get(name, SHORT[name])]
    if name in ("prompt", "scheduler_settings", "controls"):
        return
    default = None if option.default in ((), click.core.UNSET) else option.default
    expected = Request("a", **{}).__dataclass_fields__[name].default
    assert default == (0 if name.endswith("clip_skip") else expected)


def test_python_alone_has_the_rest() -> None:
    assert PYTHON.isdisjoint(OPTIONS)
