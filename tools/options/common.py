"""Types, groups and options that several commands share."""

import math

import click

from ldmrt.runtime.nearest import suggestion

THREADS = click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="CPU threads of ONNX Runtime or OpenVINO; 0 takes one per core.",
)
COMPUTE = click.option(
    "--compute",
    default="fp32",
    show_default=True,
    help="Precision that OpenVINO computes in: fp32, bf16, fp16 or int8. All but fp32 change the image, int8 visibly.",
)
LOW_MEMORY = click.option(
    "--low-memory",
    is_flag=True,
    help="Verify with one module's weights of the checkpoint in memory at a time, and the bundle's in their files; "
    "always where memory is short.",
)
PROMPT = click.option("--prompt", help="Caption of images that have no text beside them, in a folder without metadata.")
CAPTION_COLUMN = click.option("--caption-column", default="text", show_default=True,
                              help="Column of the captions in metadata.jsonl or metadata.csv.")  # fmt: skip


class Choice(click.Choice):
    """An option that takes one of a few words, and suggests the likely one for a misspelt word."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the word; fail with the choices and a suggestion where it is none of them."""
        try:
            return str(super().convert(value, param, ctx))
        except click.BadParameter as error:
            self.fail(error.message.rstrip(".") + suggestion(str(value), map(str, self.choices)), param, ctx)


class Share(click.FloatRange):
    """An option that takes a number from 0 to 1; `click.FloatRange` alone lets NaN through."""

    def __init__(self) -> None:
        """Take any share."""
        super().__init__(0, 1)

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        share = float(super().convert(value, param, ctx))
        if math.isnan(share):
            self.fail(f"{value} is no number from 0 to 1", param, ctx)
        return share


class Group(click.Group):
    """A group of commands that suggests the likely one for a misspelt name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command's name, the command and its arguments; fail with a suggestion for an unknown name."""
        name = str(args[0])
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            ctx.fail(f"No such command {name!r}{suggestion(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


SIDE = click.option(
    "--size",
    type=click.IntRange(8, 8192),
    default=64,
    show_default=True,
    help="Pixels along a side of the training images.",
)
