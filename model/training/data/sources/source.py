"""Read the captions of a training's images, wherever they are."""

from dataclasses import dataclass
from pathlib import Path

from ..listing import folders_in, images_in, read_listing
from ..metadata import CAPTION, METADATA, TABLE, Problem, Row
from .files import Files
from .hub import names_dataset, read_dataset
from .shards import names_shards, read_shards, shards_in


@dataclass(frozen=True)
class Source:
    """Holds the captions of images and where their files are.

    Attributes:
        listed: The name of the folder's metadata, "" where there is none.
        rows: One for each captioned image.
        problems: Lines and files that are invalid.
        files: Finds the file of an image by its name.
    """

    listed: str
    rows: list[Row]
    problems: list[Problem]
    files: Files


def read_source(data: Path, prompt: str | None = None, column: str = CAPTION, *, empty: bool = False) -> Source:
    """Read the captions of a folder (`read_listing`), of tar archives (`read_shards`) or a data set (`read_dataset`).

    Args:
        data: The folder, an archive, a pattern of several, or `hf:OWNER/NAME`.
        prompt: The caption of images that have none.
        column: The column of the captions.
        empty: Whether captions may be empty.

    Raises:
        LdmrtError: It cannot be read.
    """
    if names_dataset(data):
        return Source("", *read_dataset(data, prompt, column, empty=empty))
    if of_archives(data):
        return Source("", *read_shards(data, prompt, column, empty=empty))
    return Source(*read_listing(data, prompt, column, empty=empty), files=data.joinpath)


def of_archives(data: Path) -> bool:
    """Tell whether images are in tar archives, or in a folder that holds archives and no images of its own."""
    if not data.is_dir():
        return names_shards(data)
    return (
        bool(shards_in(data)) and not any((data / name).exists() for name in (METADATA, TABLE)) and not images_in(data)
    )


def holds_any(data: Path) -> bool:
    """Tell whether a path without metadata is of images: a data set, archives, files, or folders of files."""
    return names_dataset(data) or of_archives(data) or bool(images_in(data)) or any(map(images_in, folders_in(data)))
