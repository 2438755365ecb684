"""Run `ldmrt engines`: list the engines in a bundle, refit them, and remove unused ones."""

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldmrt.runtime.bundle.engines.targets import TITLES
from ldmrt.tools.console.outputs import check_output
from ldmrt.tools.options.common import Choice, Group

if TYPE_CHECKING:
    from ldmrt.runtime.bundle.engines.store import EngineFile
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.runtime.files.reading import JsonObject

# The versions of backends are read from their distributions, as importing a backend takes seconds.
INSTALLED = {"tensorrt-rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12"), "tensorrt": ("tensorrt",)}


@click.group(cls=Group)
def engines() -> None:
    """List a bundle's engines, refit them, and remove unused ones.

    Example: ldmrt engines list out/emoji64
    """


@engines.command("list")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def list_(bundle: Path, as_json: bool) -> None:
    """List the engines of BUNDLE with their GPUs, profiles and sizes.

    With --json: "bundle" and "engines", each with "name", "component", "backend", "version", "target", "precision",
    "flags", "profile" (for every bucket the "min", "opt" and "max" shape of each input), "bytes" on disk, "scratch"
    bytes on the GPU, and "useless": the reason why nothing will use the engine, null if it fits. Unknown values are
    null.

    Example: ldmrt engines list out/emoji64
    """
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.bundle.engines.store import engines as engine_files
    from ldmrt.runtime.bundle.engines.unused import unused_engines

    opened = Bundle.open(bundle, check=False)
    useless = {folder.name: why for folder, why in unused_engines(opened, versions())}
    files = list(engine_files(bundle))
    listed = [described(file, useless) for file in files]
    if as_json:
        click.echo(json.dumps({"bundle": str(bundle), "engines": listed}, indent=2))
        return
    show(files, listed)
    if useless:
        click.echo(f"next: ldmrt engines prune {bundle}")


def described(engine: "EngineFile | LdmrtError", useless: Mapping[str, str]) -> "JsonObject":
    """Return the JSON object of an engine, or of the error of an unreadable one."""
    from ldmrt.runtime.errors import LdmrtError

    names = ("component", "backend", "version", "target", "precision")
    if isinstance(engine, LdmrtError):
        name = engine.where.removeprefix("engine ")
        unknown = dict.fromkeys((*names, "flags", "profile", "bytes", "scratch"))
        return {"name": name, **unknown, "useless": useless.get(name, engine.problem)}
    recipe, name = engine.recipe, engine.folder.name
    return {
        "name": name,
        **{field: getattr(recipe, field) for field in names},
        "flags": list(recipe.flags),
        "profile": recipe.plain_profile,
        "bytes": engine.size,
        "scratch": engine.measured.get("scratch"),
        "useless": useless.get(name),
    }


def show(files: "Sequence[EngineFile | LdmrtError]", listed: "Sequence[JsonObject]") -> None:
    """Print the engines as a table."""
    from ldmrt.runtime.bundle.engines.engine_key import described as shapes
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.runtime.host import megabytes
    from ldmrt.tools.console import tables

    rows = []
    for engine, about in zip(files, listed, strict=True):
        cells = ("", "", "", "")
        if not isinstance(engine, LdmrtError):
            backend = f"{TITLES[engine.recipe.backend]} {engine.recipe.version}"
            cells = (backend, shapes(engine.recipe.profile), megabytes(engine.size), megabytes(about["scratch"] or 0))
        rows.append((about["name"], *cells, about["useless"] or "fits"))
    tables.show(("engine", "made by", "largest input", "disk", "scratch", "state"), rows, lines=True)


@engines.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    help="Bundle with the engines; by default BUNDLE itself, exported again since they were built.",
)
@click.option("--backend", type=Choice(TITLES), default="tensorrt", show_default=True, help="Backend of the engines.")
@click.option("--components", "only", help="Components to refit, such as unet,text_encoder; all by default.")
@click.option("--verify/--no-verify", default=True, help="Whether to run the new engines and compare them.")
def refit(bundle: Path, source: Path | None, backend: str, only: str | None, verify: bool) -> None:
    """Copy the engines of another export of the same graphs to BUNDLE, with BUNDLE's weights in them.

    For a model with a LoRA merged this takes seconds instead of a build. The engines must have been built with `ldmrt
    build --refit`; those of components with the same weights are copied. Existing engines are kept, so going back is as
    easy.

    Example: ldmrt engines refit out/lora --from out/emoji64
    """
    from ldmrt.export.engines.refit import refit as refit_engines
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.tools.console.progress import console
    from ldmrt.tools.console.verification.measure import verify_built

    opened = Bundle.open(bundle)
    check_output(bundle, "engines", folder=True)
    names, new = [name.strip() for name in only.split(",")] if only else [], False
    for done in refit_engines(opened, Bundle.open(source) if source else opened, backend, names):
        seconds = f", {done.seconds:.1f} s" if done.new else ""
        console.print(f"{done.engine.folder.name}: {done.how}{seconds}", highlight=False, soft_wrap=True)
        new |= done.new
    click.echo(bundle)
    if verify and new:
        verify_built(opened, backend)


@engines.command()
@click.argument("bundle", type=click.Path(path_type=Path))
def prune(bundle: Path) -> None:
    """Remove the engines of BUNDLE that nothing will use again.

    These are unfinished or damaged engines, engines of a component that has changed, and engines of another version
    than the installed one.

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
    installed = {}
    for backend, names in INSTALLED.items():
        for name in names:
            try:
                installed[backend] = importlib.metadata.version(name)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return installed
