"""`ldmrt engines`: what `ldmrt build` has put into a bundle."""

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldmrt.runtime.bundle.engines.targets import BACKENDS
from ldmrt.tools.console.outputs import check_output
from ldmrt.tools.options.common import Choice, Group

if TYPE_CHECKING:
    from ldmrt.runtime.bundle.engines.store import EngineFile
    from ldmrt.runtime.errors import LdmrtError

# The distributions that say which version of a backend is installed: importing one takes seconds.
INSTALLED = {"tensorrt-rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12"), "tensorrt": ("tensorrt",)}


@click.group(cls=Group)
def engines() -> None:
    """Look at a bundle's engines, and remove those that nothing will use again.

    Example: ldmrt engines list out/emoji64
    """


@engines.command("list")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of the table.")
def list_(bundle: Path, as_json: bool) -> None:
    """Show the engines of BUNDLE, what each was made for and what it takes.

    With --json: "bundle" and "engines", each with "name", "component", "backend", "version", "target", "precision",
    "flags", "profile" (for every bucket the "min", "opt" and "max" shape of each input), "bytes" on disk, "scratch"
    bytes on the GPU, and "useless", which says why nothing will use it again. What is not known is null, and so is
    "useless" where the engine fits.

    Example: ldmrt engines list out/emoji64
    """
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.bundle.engines.store import engines as found
    from ldmrt.runtime.bundle.engines.unused import unused_engines

    opened = Bundle.open(bundle, check=False)
    useless = {folder.name: why for folder, why in unused_engines(opened, versions())}
    there = list(found(bundle))
    listed = [described(one, useless) for one in there]
    if as_json:
        click.echo(json.dumps({"bundle": str(bundle), "engines": listed}, indent=2))
        return
    show(there, listed)
    if useless:
        click.echo(f"next: ldmrt engines prune {bundle}")


def described(one: "EngineFile | LdmrtError", useless: Mapping[str, str]) -> dict[str, Any]:
    """Return what the JSON holds of an engine."""
    from ldmrt.runtime.errors import LdmrtError

    names = ("component", "backend", "version", "target", "precision")
    if isinstance(one, LdmrtError):
        name = one.where.removeprefix("engine ")
        unknown = dict.fromkeys((*names, "flags", "profile", "bytes", "scratch"))
        return {"name": name, **unknown, "useless": useless.get(name, one.problem)}
    recipe, name = one.recipe, one.folder.name
    return {
        "name": name,
        **{field: getattr(recipe, field) for field in names},
        "flags": list(recipe.flags),
        "profile": recipe.plain_profile,
        "bytes": one.size,
        "scratch": one.measured.get("scratch"),
        "useless": useless.get(name),
    }


def show(found: "Sequence[EngineFile | LdmrtError]", listed: Sequence[Mapping[str, Any]]) -> None:
    """Show the engines as a table."""
    from ldmrt.runtime.bundle.engines.recipe import described as shapes
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.runtime.host import megabytes
    from ldmrt.tools.console import tables

    rows = []
    for one, about in zip(found, listed, strict=True):
        made = ("", "", "", "")
        if not isinstance(one, LdmrtError):
            backend = f"{BACKENDS[one.recipe.backend]} {one.recipe.version}"
            made = (backend, shapes(one.recipe.profile), megabytes(one.size), megabytes(about["scratch"] or 0))
        rows.append((about["name"], *made, about["useless"] or "fits"))
    tables.show(("engine", "made by", "largest input", "disk", "scratch", "state"), rows, lines=True)


@engines.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--from", "source", type=click.Path(path_type=Path), help="The bundle that has engines; BUNDLE itself "
              "by default, exported anew since they were built.")  # fmt: skip
@click.option("--backend", type=Choice(BACKENDS), default="tensorrt", show_default=True, help="Whose engines.")
@click.option("--components", "only", help="Only these, such as unet,text_encoder.")
@click.option("--verify/--no-verify", default=True, help="Whether to run at last what was made.")
def refit(bundle: Path, source: Path | None, backend: str, only: str | None, verify: bool) -> None:
    """Give BUNDLE the engines of another export of the same graphs, with BUNDLE's weights in them: of a model with a
    LoRA merged, in seconds in place of a build. The engines must have been built with `ldmrt build --refit`; those of
    components that do not differ are copied. Engines that are there stay as they are, so going back is as easy.

    Example: ldmrt engines refit out/lora --from out/emoji64
    """
    from ldmrt.export.engines.refit import refit as refitted
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.tools.console.progress import console
    from ldmrt.tools.console.verification import verify_built

    opened = Bundle.open(bundle)
    check_output(bundle, "engines", folder=True)
    names, new = [name.strip() for name in only.split(",")] if only else [], False
    for done in refitted(opened, Bundle.open(source) if source else opened, backend, names):
        took = f", {done.seconds:.1f} s" if done.new else ""
        console.print(f"{done.engine.folder.name}: {done.how}{took}", highlight=False, soft_wrap=True)
        new |= done.new
    click.echo(bundle)
    if verify and new:
        verify_built(opened, backend)


@engines.command()
@click.argument("bundle", type=click.Path(path_type=Path))
def prune(bundle: Path) -> None:
    """Remove engines of BUNDLE that nothing will use again: unfinished or damaged, of a component that has changed
    since, or of another version than the one installed here.

    Example: ldmrt engines prune out/emoji64
    """
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.bundle.engines.unused import unused_engines
    from ldmrt.runtime.errors import printable
    from ldmrt.runtime.files.lock import bundle_lock
    from ldmrt.runtime.files.writing import remove, remove_abandoned

    opened = Bundle.open(bundle, check=False)
    with bundle_lock(bundle):
        opened.check_unchanged()
        for folder, why in unused_engines(opened, versions()):
            remove(folder)
            click.echo(f"removed {printable(folder.name)}: {why}")
        for folder in (bundle / "engines").glob("*"):
            remove_abandoned(folder)


def versions() -> dict[str, str]:
    """Return the versions of the backends that are installed here."""
    found = {}
    for backend, names in INSTALLED.items():
        for name in names:
            try:
                found[backend] = importlib.metadata.version(name)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found
