"""Find the captions of a folder's images: in its metadata, in texts beside the images, or one for all of them."""

import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from ldmrt.runtime.errors import LdmrtError

from .metadata import CAPTION, METADATA, TABLE, InvalidRow, Problem, Row, read_metadata, read_text

CAPTION_BYTES = 1 << 16  # of a text beside an image
REPEATED = re.compile(r"(?:([0-9]{1,9})_)?(.*)", re.DOTALL)
MOST_TIMES = 1000  # that an image comes in an epoch


def read_listing(
    folder: Path, prompt: str | None = None, column: str = CAPTION, *, empty: bool = False
) -> tuple[str, list[Row], list[Problem]]:
    """Read which images a folder has, and their captions. No image is opened.

    The metadata is metadata.jsonl, or else metadata.csv. Without either, the images are all those in the folder itself,
    in the order of their names, and the caption of `cat.png` is the text of `cat.txt`, or else `prompt`. Where it has
    none, they are those of its folders, whose names are the captions of images without another one. Of `10_red cat`
    (kohya's sd-scripts) the caption is "red cat", and each image has 10 rows, so that an epoch holds it as often.

    Args:
        folder: The folder.
        prompt: The caption of images without a text beside them.
        column: The column of the captions in the metadata.
        empty: Whether captions may be empty, and missing where there is no metadata.

    Returns:
        The name of the metadata, "" without it; the rows; and what is wrong with lines and files.

    Raises:
        LdmrtError: The metadata or the folder cannot be read, there is metadata and a prompt, or a folder's number is
            invalid.
    """
    for name in (METADATA, TABLE):
        if (folder / name).exists() or (folder / name).is_symlink():
            if prompt is not None:
                problem = f"--prompt is for images without metadata, and there is {folder / name}"
                raise LdmrtError("data", problem, hint="no --prompt")
            return name, *read_metadata(folder / name, column, empty=empty)
    groups = [(1, prompt, images)] if (images := images_in(folder)) else list(_of_folders(folder, prompt))
    if not groups:
        raise LdmrtError("data", f"no images in {folder}", expected=f"{METADATA}, {TABLE}, or images")
    rows, problems = list[Row](), list[Problem]()
    for times, otherwise, images in groups:
        for image in images:
            name = image.relative_to(folder).as_posix()
            try:
                rows += [Row(0, name, _caption(image, name, otherwise, empty=empty))] * times
            except InvalidRow as invalid:
                problems.append(Problem(0, str(invalid)))
    return "", rows, problems


def _caption(image: Path, name: str, prompt: str | None, *, empty: bool) -> str:
    """Return the text beside an image, or else `prompt`; raise an `InvalidRow` where there is none."""
    beside = image.with_suffix(".txt")
    try:
        caption = read_text(beside, CAPTION_BYTES).strip("\ufeff \t\r\n") if beside.exists() else prompt
    except LdmrtError as error:
        raise InvalidRow(str(error).removeprefix("data: ")) from None
    if caption is None and not empty:
        raise InvalidRow(f"{name} has no {beside.name} beside it, and there is no --prompt")
    if not empty and not (caption or "").strip():
        raise InvalidRow(f"{beside.name if beside.exists() else '--prompt'} is empty")
    return caption or ""


def _of_folders(folder: Path, prompt: str | None) -> Iterator[tuple[int, str | None, list[Path]]]:
    """Yield of each folder in a folder how often its images come in an epoch, their caption, and the images.

    Raises:
        LdmrtError: A number is 0 or very large.
    """
    for path in folders_in(folder):
        number, name = REPEATED.fullmatch(path.name).groups(default="1")  # type: ignore[union-attr]
        if images := images_in(path):
            if not 1 <= int(number) <= MOST_TIMES:
                raise LdmrtError("data", f"invalid number in {path}", expected=f"1 to {MOST_TIMES}", found=number)
            yield int(number), prompt or name.strip() or None, images


def folders_in(folder: Path) -> list[Path]:
    """List the folders in a folder in the order of their names, but for hidden ones."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())
    except OSError:
        return []


def images_in(folder: Path) -> list[Path]:
    """List the files of a folder that are images by the ends of their names, in the order of their names."""
    known = Image.registered_extensions()
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in known and path.is_file())
    except OSError:
        return []
