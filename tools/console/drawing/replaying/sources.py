"""Find what an image or an animation was drawn from: bundles by their names, files by their names and SHA-256."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import sha256
from ldmrt.runtime.pipeline.infotext.record import SENT
from ldmrt.tools.console.drawing.embedded.programs import Description

PLACES = ("", "out")  # folders in which a bundle is looked for by its name, beside the image's own


def find_bundle(image: Description, given: Path | None, name: object = None, option: str = "--bundle") -> Path:
    """Return the bundle that is given, or the one that has a name.

    Args:
        image: What the file of the image says.
        given: The bundle that was given.
        name: The name of another than the image's bundle.
        option: What names it in a command.

    Raises:
        LdmrtError: None is there.
    """
    if given is not None:
        return given
    name = str((image.parameters or {}).get("bundle") if name is None else name)
    if Path(name).name == name and name not in ("", ".", ".."):
        for folder in (*map(Path, PLACES), image.path.parent):
            if os.path.isfile(folder / name / "ldmrt.json"):  # False of a name that is too long
                return folder / name
    raise LdmrtError("replay", f"no bundle {name!r:.100} is here", hint=f"ldmrt replay {image.path} {option} FOLDER")


def find_input(image: Description, record: object, folder: Path | None) -> Path:
    """Return a file that a request reads, as it was.

    Raises:
        LdmrtError: It is gone, or another, or was sent to a server.
    """
    known: Mapping[str, Any] = record if isinstance(record, dict) else {}
    if known.get(SENT):
        problem = f"{image.path} was drawn from an image that a server was sent"
        raise LdmrtError("replay", problem, expected="an image that was drawn from prompts alone, or from files")
    name = Path(str(known.get("file"))).name
    places = [folder] if folder is not None else [Path(), image.path.parent]
    files = [place / name for place in places if name and os.path.isfile(place / name)]
    if not files:
        where = " and ".join(str(place.absolute()) for place in dict.fromkeys(places))
        hint = f"ldmrt replay {image.path} --inputs FOLDER"
        raise LdmrtError(
            "replay", f"{name!s:.100} is gone, which the image was drawn from", expected=f"it in {where}", hint=hint
        )
    hashes = {}
    for file in files:
        hashes[file] = sha256(file)
        if hashes[file] == known.get("sha256"):
            return file
    problem = f"{files[0]} is not the file that the image was drawn from"
    raise LdmrtError("replay", problem, expected=f"SHA-256 {known.get('sha256')}", found=hashes[files[0]])
