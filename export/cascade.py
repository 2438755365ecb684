"""Adds a bundle to another one, whose images it enlarges, as the last stage of a cascade."""

import json
from pathlib import Path

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.contents import is_name
from ldmrt.runtime.bundle.manifest import CASCADE, MANIFEST, MOST_STAGES, check_manifest, folders_of
from ldmrt.runtime.bundle.stages import BASE
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.lock import bundle_lock
from ldmrt.runtime.files.writing import write_atomically
from ldmrt.runtime.pipeline.request.stages import check_order


def check_stage(bundle: Path, name: str) -> None:
    """Refuse a name that no later stage of a bundle can have, before a stage is exported.

    Raises:
        LdmrtError: The bundle is missing or damaged, or the name is its own or a component's.
    """
    opened = Bundle.open(bundle, check=False)
    if not opened.manifest:
        raise LdmrtError("export", f"{bundle} has no manifest, so it can have no later stage", hint="export it again")
    taken = {BASE, *folders_of(opened.manifest)}
    if not is_name(name) or name in taken:
        expected = f"a name other than {', '.join(sorted(taken))}"
        raise LdmrtError("export", f"invalid name of a stage {name!r:.100}", expected=expected)
    if name not in opened.then and len(opened.then) == MOST_STAGES:
        raise LdmrtError("export", f"{bundle} has too many stages", expected=f"at most {MOST_STAGES} after the first")


def add_stage(bundle: Path, name: str) -> None:
    """Make the bundle in the folder `name` of another bundle its last stage; one that is there keeps its place.

    Args:
        bundle: The bundle, whose manifest is replaced at once.
        name: The name of the stage, and of its folder.

    Raises:
        LdmrtError: One of both is no bundle, or the stage takes no image.
    """
    check_order(Bundle.open(bundle / name, check=False).stage)
    with bundle_lock(bundle):
        opened = Bundle.open(bundle, check=False)
        names = [*opened.then, *([] if name in opened.then else [name])]
        manifest = {**opened.manifest, "schema": CASCADE, "then": names}
        check_manifest(manifest)
        with write_atomically(bundle / MANIFEST) as file:
            file.write((json.dumps(manifest, indent=2) + "\n").encode())
