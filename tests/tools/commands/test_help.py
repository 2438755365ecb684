"""Help texts: every option says what it is, its default, and its choices."""

from collections.abc import Iterator

import click
import pytest

from ldmrt.tools.cli import COMMANDS, function_of


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command and those inside groups."""
    for name in COMMANDS:
        found = function_of(name)
        yield from ((f"{name} {sub}", one) for sub, one in getattr(found, "commands", {"": found}).items())


OPTIONS = [
    pytest.param(option, id=f"{name.strip()} {option.opts[0]}")
    for name, command in commands()
    for option in command.params
    if isinstance(option, click.Option)
]


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_says_what_it_is(option: click.Option) -> None:
    assert option.help, "no help"
    said = option.get_help_record(click.Context(click.Command("x")))
    assert said is not None
    shown = " ".join(said)
    plain = option.default if isinstance(option.default, (int, float, str)) and not option.is_flag else None
    if plain is not None:
        assert str(plain) in shown, "its default is not shown"
    if isinstance(option.type, click.Choice):
        assert all(str(choice) in shown for choice in option.type.choices)
