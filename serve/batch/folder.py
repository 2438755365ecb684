"""The folder of a run: whose it is, and where its images lie."""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.lock import LOCK, file_lock
from ldmrt.runtime.files.reading import JsonObject, read_json
from ldmrt.runtime.files.writing import remove_abandoned, sync_folder, write_atomically

STATED = "batch.json"
EACH = 500  # lines of a folder: an image and a depth of each make 1000 entries
NUMBERED = re.compile(r"([0-9]{6,})(-[0-9]+(-depth)?\.png)?")


@dataclass(frozen=True)
class Stated:
    """Holds what a run was begun with, by which a later one knows whether it goes on with the same.

    Attributes:
        bundle: The bundle's name, for messages.
        files: A digest of the bundle's files.
        options: The command's options that change images, such as {"--steps": 20}.
    """

    bundle: str
    files: str
    options: Mapping[str, Any]

    def check(self, out: Path) -> bool:
        """Compare with what stands in a folder; False where nothing stands in it yet.

        Raises:
            LdmrtError: The folder's images were drawn by another bundle or with other options, or it holds other files.
        """
        path = out / STATED
        if not path.exists():
            if any(not entry.name.startswith(".") for entry in (out.iterdir() if out.exists() else ())):
                problem = f"{out} is there and holds no run of ldmrt batch"
                raise LdmrtError("batch", problem, expected="a new or an empty folder", hint="another OUT")
            return False
        there = read_json("batch", path)
        if there.get("files") != self.files:
            problem = f"the images in {out} are of another bundle"
            found, hint = self.bundle, "the bundle as it was, or another OUT"
            raise LdmrtError("batch", problem, expected=there.get("bundle"), found=found, hint=hint)
        begun, now = there.get("options", {}), self._json()["options"]
        for name in sorted({*begun, *now}):
            if begun.get(name) != now.get(name):
                problem = f"the images in {out} were drawn with another {name}"
                expected, found = (json.dumps(one.get(name), ensure_ascii=False) for one in (begun, now))
                hint = "the same options, or another OUT"
                raise LdmrtError("batch", problem, expected=expected, found=found, hint=hint)
        return True

    def write(self, out: Path) -> None:
        """Write it into a folder."""
        with write_atomically(out / STATED) as file:
            file.write(json.dumps(self._json(), indent=1, ensure_ascii=False).encode())
        sync_folder(out.parent)

    def _json(self) -> JsonObject:
        """Return it as JSON has it, tuples as lists."""
        whole = {"bundle": self.bundle, "files": self.files, "options": dict(self.options)}
        parsed: JsonObject = json.loads(json.dumps(whole, default=str))
        return parsed


def image_path(line: int, image: int, images: int) -> Path:
    """Return the file of an image of a line, in the folder of a run.

    No folder has more than 1000 entries: each holds those of 500 lines, and a line of several images has its own.
    """
    folder, name = _folder_of(line), f"{line:06d}"
    if images > 1:
        folder /= name
    if images > EACH:
        folder /= f"{image // EACH:03d}"
    return folder / f"{name}-{image}.png"


def _folder_of(line: int) -> Path:
    """Return the folder of a line."""
    place = (line - 1) // EACH
    return Path(f"{place // 1000:03d}", f"{place % 1000:03d}")


def make_folder(out: Path, file: Path) -> None:
    """Make the folder of a file in the folder of a run, and wait until its name is on the disk too."""
    folder = (out / file).parent
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        for parent in list(folder.parents)[: len(file.parts) - 1]:
            sync_folder(parent)


def remove_after(out: Path, line: int) -> None:
    """Remove images of later lines than this one: they are drawn again, and a killed run may have left some of them."""
    first = line + 1
    while (folder := out / _folder_of(first)).is_dir():
        remove_abandoned(folder)
        for entry in folder.iterdir():
            match = NUMBERED.fullmatch(entry.name)
            if match and int(match[1]) > line:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        first += EACH


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is created; folders that are empty at the end are removed again."""
    created = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        with contextlib.ExitStack() as held:
            try:
                out.mkdir(parents=True, exist_ok=True)
                held.enter_context(file_lock(out / LOCK, "batch", f"{out} is in use", "wait until it has ended"))
            except OSError as error:
                raise LdmrtError("batch", f"cannot write to {out}", found=error.strerror) from None
            yield
    finally:
        for folder in created:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()
