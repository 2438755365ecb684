"""Run `ldmrt info`: show how images were drawn."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldmrt.tools.options.types import IMAGE

if TYPE_CHECKING:
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.tools.console.drawing.embedded.programs import Description

COMPUTED = "(computed by nodes of ComfyUI's graph)"


@click.command()
@click.argument("files", nargs=-1, required=True, type=IMAGE)
@click.option("--json", "as_json", is_flag=True, help="Print a list of JSON objects instead of the tables.")
def info(files: tuple[Path, ...], as_json: bool) -> None:
    """Show what the files of images say of how they were drawn: by ldmrt, AUTOMATIC1111's web UI, ComfyUI or InvokeAI.

    With --json: for each file "file", "program", "prompt", "negative_prompt", "settings" ("steps", "sampler",
    "guidance", "seed", "width", "height", "model" and others, what is known of them) and "parameters", all that ldmrt
    wrote, or null. A prompt that nodes of ComfyUI computed is null. A file that cannot be read is an error after those
    that can, and the exit code is 2.

    Example: ldmrt info out/apple.png
    """
    from ldmrt.runtime.errors import LdmrtError, printable
    from ldmrt.runtime.pipeline.infotext.record import MADE
    from ldmrt.tools.console import tables

    read = [_read(Path(file)) for file in files]
    described = [each for each in read if not isinstance(each, LdmrtError)]
    errors = [each for each in read if isinstance(each, LdmrtError)]
    if as_json and described:
        click.echo(json.dumps([each.to_json() for each in described], indent=2, allow_nan=False))
    for each in [] if as_json else described:
        texts = [COMPUTED if text is None else text for text in (each.prompt, each.negative)]
        rows = [("program", each.program), ("prompt", texts[0]), ("negative prompt", texts[1])]
        rows += [(name.replace("_", " "), str(value)) for name, value in each.settings.items()]
        made = (each.parameters or {}).get(MADE)
        if isinstance(made, dict):
            rows += [(name, str(made.get(name))) for name in ("bundle_sha256", "certificate", "backend", "processor")]
            versions = made.get("versions")
            each_version = versions.items() if isinstance(versions, dict) else ()
            rows.append(("versions", ", ".join(f"{name} {version}" for name, version in each_version)))
        shown = [(name, printable(value)) for name, value in rows if value]
        tables.show(("", "value"), shown, title=printable(str(each.path)))
    for error in errors[:-1]:
        click.secho(f"error: {error}", fg="red", err=True)
    if errors:
        raise errors[-1]


def _read(file: Path) -> "Description | LdmrtError":
    """Return what a file says, or why it cannot be read."""
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.runtime.files.recognise import refuse_gguf
    from ldmrt.tools.console.drawing.embedded.programs import describe

    try:
        refuse_gguf("info", file, "an image")
        return describe("info", file)
    except LdmrtError as error:
        return error
