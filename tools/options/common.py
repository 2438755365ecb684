"""What several commands share on the command line: types and groups that suggest a name, and options."""

from typing import Any

import click

from ldmrt.runtime.nearest import suggestion

THREADS = click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="CPU threads of ONNX Runtime; 0 is one a core.",
)


class Choice(click.Choice):
    """One of a few words; a misspelt one is told which was likely meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the word, or fail with the choices and a suggestion."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(error.message.rstrip(".") + suggestion(value, map(str, self.choices)), param, ctx)


class Group(click.Group):
    """A group of commands; a misspelt one is told which was likely meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command's name, the command and its words, or fail with a suggestion."""
        name = str(args[0])
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            ctx.fail(f"No such command {name!r}{suggestion(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)
