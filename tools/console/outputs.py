"""Output paths, checked before a command does any work."""

import os
import tempfile
from pathlib import Path

import click

NAME_MAX = 255  # bytes, of the usual file systems


class Output(click.Path):
    """An option for a file or a folder to write; a path that cannot be written is refused when it is parsed."""

    def __init__(self, *, folder: bool = False) -> None:
        """Take files, or with `folder` folders."""
        super().__init__(path_type=Path)
        self.folder = folder

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path, checked with `check_output`."""
        option = param.opts[-1] if param else "output"
        return check_output(Path(value), option, folder=self.folder)


def check_output(path: Path, option: str, *, folder: bool = False) -> Path:
    """Return the path if it can be written, without creating or changing anything.

    Raises:
        LdmrtError: Nothing can be written there; `option` is named.
    """
    try:
        why = _fault(path, folder)
    except (OSError, ValueError) as error:  # a name that is too long, or holds a null
        why = getattr(error, "strerror", None) or str(error)
    if why:
        from ldmrt.runtime.errors import LdmrtError

        raise LdmrtError(option, f"{path} cannot be written", found=why.lower())
    return path


def _fault(path: Path, folder: bool) -> str:
    if "\0" in str(path):
        return "a null in its name"
    if path.is_dir() and not folder:
        return "a folder of that name"
    if path.exists() and folder and not path.is_dir():
        return "a file of that name"
    if path.exists() and not (path.is_dir() or path.is_file()):
        return "a device or a pipe"
    place = path if folder and path.exists() else path.parent
    missing = [path.name]
    while not os.path.lexists(place):
        missing.append(place.name)
        place = place.parent
    if not place.is_dir():
        return f"{place}, which is not a folder"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"no permission to write in {place}"
    with tempfile.TemporaryFile(dir=place):  # some file systems, such as /proc, refuse what their permissions allow
        pass
    for name in missing:
        if len(os.fsencode(name)) > NAME_MAX:
            return "file name too long"
    return ""
