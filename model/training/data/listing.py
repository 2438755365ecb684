"""Find the captions of a folder's images: in its metadata, in texts beside the images, or one for all of them."""

from pathlib import Path

from PIL import Image

from ldmrt.runtime.errors import LdmrtError

from .metadata import CAPTION, METADATA, TABLE, Problem, Row, read_metadata, read_text

CAPTION_BYTES = 1 << 16  # of a text beside an image


def read_listing(
    folder: Path, prompt: str | None = None, column: str = CAPTION, *, empty: bool = False
) -> tuple[str, list[Row], list[Problem]]:
    """Read which images a folder has, and their captions. No image is opened.

    The metadata is metadata.jsonl, or else metadata.csv. Without either, the images are all those in the folder itself,
    in the order of their names, and the caption of `cat.png` is the text of `cat.txt`, or else `prompt`.

    Args:
        folder: The folder.
        prompt: The caption of images without a text beside them.
        column: The column of the captions in the metadata.
        empty: Whether captions may be empty, and missing where there is no metadata.

    Returns:
        The name of the metadata, "" without it; the rows; and what is wrong with lines and files.

    Raises:
        LdmrtError: The metadata or the folder cannot be read, or there is metadata and a prompt.
    """
    for name in (METADATA, TABLE):
        if (folder / name).exists() or (folder / name).is_symlink():
            if prompt is not None:
                problem = f"--prompt is for images without metadata, and there is {folder / name}"
                raise LdmrtError("data", problem, hint="no --prompt")
            return name, *read_metadata(folder / name, column, empty=empty)
    images = images_in(folder)
    if not images:
        raise LdmrtError("data", f"no images in {folder}", expected=f"{METADATA}, {TABLE}, or images")
    rows, problems = list[Row](), list[Problem]()
    for image in images:
        beside = image.with_suffix(".txt")
        try:
            caption = read_text(beside, CAPTION_BYTES).strip("\ufeff \t\r\n") if beside.exists() else prompt
        except LdmrtError as error:
            problems.append(Problem(0, str(error).removeprefix("data: ")))
            continue
        caption = "" if caption is None and empty else caption
        if caption is None:
            problems.append(Problem(0, f"{image.name} has no {beside.name} beside it, and there is no --prompt"))
        elif not caption.strip() and not empty:
            problems.append(Problem(0, f"{beside.name if beside.exists() else '--prompt'} is empty"))
        else:
            rows.append(Row(0, image.name, caption))
    return "", rows, problems


def images_in(folder: Path) -> list[Path]:
    """List the files of a folder that are images by the ends of their names, in the order of their names."""
    known = Image.registered_extensions()
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in known and path.is_file())
    except OSError:
        return []
