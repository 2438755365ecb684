"""Run `ldmrt demo`: the shipped models, one that draws and one that enlarges, from their checkpoints to images."""

import contextlib
import io
import os
import shlex
import sys
from collections.abc import Collection
from pathlib import Path

import click

from ldmrt.tools.console.outputs import Output

# Beside `tools` in a checkout and in an installed package alike.
SHIPPED = Path(__file__).parents[2] / "model" / "pretrained"
CHECKPOINT, UPSCALER = SHIPPED / "emoji64", SHIPPED / "emoji128-upscaler"
PROMPTS = Path(__file__).parents[1] / "emoji" / "demo_prompts.txt"  # one a line
DRAWING = ("--seed", "1", "--guidance", "2", "--columns", "6")
STAGE = "upscale"
ENLARGING = ("--steps", f"base=20,{STAGE}=1", "--noise-level", "0")
EXPORT = ("torch", "transformers", "safetensors", "onnx", "onnx_ir", "onnxscript", "onnxruntime")
EXTRA = "pip install 'ldmrt[demo]'"


@click.command()
@click.option(
    "-o",
    "--out",
    type=Output(),
    default=Path("demo.png"),
    show_default=True,
    help="File of the grid; single images go into a folder beside it, which has its name without the ending.",
)
@click.option(
    "--bundle",
    type=Output(folder=True),
    default=Path("emoji128"),
    show_default=True,
    help="Folder of the bundle, exported where it is missing and reused where it exists.",
)
@click.option("--overwrite", is_flag=True, help="Replace existing images; without it, OUT gets a free number.")
def demo(out: Path, bundle: Path, overwrite: bool) -> None:
    """Draw 24 emoji with the small models that ldmrt brings: export both, verify them, make the images.

    The one draws images of 64 pixels, the other enlarges them to 128: a cascade.

    It shows each command that it runs. Exporting needs the packages of ldmrt[demo]; where the bundle exists already,
    those of ldmrt[cpu] are enough.

    Example: ldmrt demo -o out/demo.png --bundle out/emoji128
    """
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.tools.console.drawing.image_paths import free_path, numbered

    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
    with free_path(out, 1, steps=False, overwrite=overwrite) as grid:
        if grid.with_suffix("") == bundle:
            raise LdmrtError("demo", "--out and --bundle name one folder", expected="another name for one of them")
        how = (*DRAWING, *(ENLARGING if prepare(bundle) else ()))
        each = grid.with_suffix("") / f"each{grid.suffix}"
        with free_path(each, len(prompts), steps=False, overwrite=overwrite) as each:
            run("generate", bundle, *prompts, *how, "--overwrite", "--out", each, hidden=prompts[1:], quiet=True)
            os.replace(each, grid)
    first, last = numbered(each, 0), numbered(each, len(prompts) - 1)
    click.echo(f"the images: {grid}, and one by one {first} to {last}")


def prepare(bundle: Path) -> bool:
    """Export the shipped checkpoints unless a bundle exists already, then verify the bundle without PyTorch.

    Returns:
        Whether the bundle has the stage `STAGE`; one that existed before may lack it.

    Raises:
        LdmrtError: A package that the export needs is not installed, or the bundle is damaged.
        SystemExit: A difference passes its tolerance; the exit code is 1.
    """
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.errors import BundleError, LdmrtError
    from ldmrt.runtime.files.recognise import BUNDLE, kind_of
    from ldmrt.runtime.optional import check_installed

    if kind_of(bundle) != BUNDLE:
        try:
            check_installed("demo", *EXPORT)
        except LdmrtError as error:
            raise LdmrtError("demo", error.problem, hint=EXTRA) from None
        run("export", CHECKPOINT, bundle)
        run("export", UPSCALER, bundle, "--stage", STAGE)
    else:
        click.echo(f"{bundle} exists: the export is skipped", err=True)
    try:
        opened = Bundle.open(bundle)
    except LdmrtError as error:
        hint = f"remove {bundle}, or name another folder with --bundle"
        raise error.as_kind(BundleError, hint) from None
    if opened.certificate is None:
        against = shlex.join(("ldmrt", "verify", str(bundle), "--against", str(CHECKPOINT), "--store"))
        click.secho(f"not verified: {bundle} has no certificate; next: {against}", fg="yellow", err=True)
    else:
        run("verify", bundle)
    if STAGE in opened.then:
        return True
    added = shlex.join(("ldmrt", "export", str(UPSCALER), str(bundle), "--stage", STAGE))
    click.secho(f"{bundle} has no stage {STAGE}, so images are not enlarged; next: {added}", fg="yellow", err=True)
    return False


def run(*words: object, hidden: Collection[str] = (), quiet: bool = False) -> None:
    """Show a command of ldmrt, without the prompts in `hidden`, and run it in this process.

    Its standard output goes to the standard error, or nowhere if `quiet`.
    """
    arguments = [str(word) for word in words]
    shown = shlex.join(["ldmrt", *(word for word in arguments if word not in hidden)])
    click.secho(f"$ {shown}" + (f"  # and {len(hidden)} more prompts" if hidden else ""), fg="cyan", err=True)
    group = click.get_current_context().find_root().command
    with contextlib.redirect_stdout(io.StringIO() if quiet else sys.stderr):
        group.main(arguments, prog_name="ldmrt", standalone_mode=False)
