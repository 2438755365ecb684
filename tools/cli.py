"""The command line; a command is imported only when it runs, so that `ldmrt --help` stays instant."""

import importlib
import warnings

import click

from .console.script import run_script
from .options.common import Group

# name of the command, of its module and of its function -> one line of help
COMMANDS = {
    "demo": "Draw images with the small model that ldmrt brings.",
    "generate": "Make images from a bundle.",
    "upscale": "Enlarge an image with a bundle of an upscaler.",
    "sweep": "Draw all combinations of some options' values, and compare them on one page.",
    "interpolate": "Draw an animation from prompt to prompt.",
    "info": "Show how images were drawn, here or by other programs.",
    "replay": "Draw an image or an animation again, and compare it.",
    "batch": "Make the images of a file of prompts, and go on where it was stopped.",
    "export": "Turn a checkpoint into a bundle of ONNX files.",
    "verify": "Prove that a bundle computes what its checkpoint does.",
    "inspect": "Show what a bundle holds.",
    "plan": "Predict the memory and disk space of engines.",
    "build": "Build TensorRT engines of a bundle.",
    "engines": "List engines, refit them, and remove unused ones.",
    "serve": "Serve bundles over HTTP.",
    "export-triton": "Write a bundle as a model repository of Triton.",
    "bench": "Measure where the time of an image goes.",
    "samplers": "List the samplers, or show their plans.",
    "data": "Build a training set.",
    "train": "Train an autoencoder, a diffusion model in latents or pixels, or an upscaler.",
    "evaluate": "Score the images of a model beside those that it was trained on.",
}
TRAINING, SERVING = ("data", "train", "evaluate"), ("batch", "serve", "export-triton")  # in folders of their own
IMAGES = ("upscale", "sweep", "interpolate", "info", "replay")
FOLDERS = dict.fromkeys(TRAINING, "training") | dict.fromkeys(IMAGES, "images") | dict.fromkeys(SERVING, "serving")


def function_of(name: str) -> click.Command:
    """Import the command of a name in `COMMANDS`."""
    folder = f"commands.{FOLDERS[name]}" if name in FOLDERS else "commands"
    module = name.replace("-", "_")
    command: click.Command = getattr(importlib.import_module(f"ldmrt.tools.{folder}.{module}"), module)
    return command


class Lazy(Group):
    """A group that knows the names of its commands and imports a command only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import a command; None if no command has this name."""
        return function_of(name) if name in COMMANDS else None

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; the error about an option that it lacks names the commands that have it."""
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            commands = {name: function_of(name) for name in COMMANDS}
            having = [
                name
                for name, command in commands.items()
                if any(error.option_name in (*one.opts, *one.secondary_opts) for one in command.params)
            ]
            if not having or error.possibilities:
                raise
            verb = "has" if len(having) == 1 else "have"
            message = f"{error.message.rstrip('.')}, but ldmrt {' and ldmrt '.join(having)} {verb} it."
            raise click.UsageError(message, error.ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands into the help without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="ldmrt", message="%(prog)s %(version)s")
def cli() -> None:
    """Latent diffusion from PyTorch to ONNX to TensorRT: exported, proven unchanged, and run without torch.

    Example: ldmrt export CHECKPOINT BUNDLE && ldmrt generate BUNDLE "a red apple, noto style, blue background"
    """


def main() -> None:
    """Run the command line; warnings of ldmrt are shown, those of other libraries are hidden."""
    from ldmrt.runtime.errors import LdmrtWarning, shortened

    def show(message: Warning | str, category: type[Warning], *rest: object) -> None:
        if issubclass(category, LdmrtWarning):
            click.secho(f"warning: {shortened(message)}", fg="yellow", err=True)

    warnings.showwarning = show  # type: ignore[assignment]
    run_script(cli, "ldmrt")


if __name__ == "__main__":
    main()
