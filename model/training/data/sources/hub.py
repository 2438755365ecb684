"""Read captioned images of a data set of Hugging Face's `datasets`, from the hub or from a folder."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.files.reading import read_bytes
from ldmrt.runtime.optional import unavailable

from ..metadata import InvalidRow, Problem, Row, row_of
from .files import Stored

HUB = "hf:"
SAVED = ("state.json", "dataset_dict.json")  # of `save_to_disk`
SPLIT = "train"
LARGEST = 1 << 30  # bytes of an image


@dataclass(frozen=True)
class HubImages:
    """Finds images in rows of a data set, by "row NUMBER", counted from 0."""

    name: str
    column: str
    rows: Any = field(repr=False)  # datasets.Dataset, whose images are not decoded
    container: Path | None = None

    def __call__(self, name: str) -> Stored:
        """Return an image's file, which is read when it is first needed."""
        return Stored(f"{self.name}: {name}", partial(self._content, int(name.removeprefix("row "))), self.container)

    def _content(self, number: int) -> bytes:
        """Read the bytes of an image that is in the data set, or at a path that the data set has."""
        stored = self.rows[number][self.column] or {}
        if isinstance(content := stored.get("bytes"), bytes):
            return content
        if not stored.get("path"):
            raise LdmrtError("data", f"{self.name}: row {number} has no image")
        return read_bytes("data", Path(stored["path"]), LARGEST)


def names_dataset(data: Path) -> bool:
    """Tell whether a path is `hf:OWNER/NAME`, or `hf:FOLDER`."""
    return str(data).startswith(HUB)


def read_dataset(
    data: Path, prompt: str | None, column: str, *, empty: bool = False
) -> tuple[list[Row], list[Problem], HubImages]:
    """Read the captions of a data set; no image is decoded.

    Args:
        data: `hf:OWNER/NAME`, `hf:FOLDER`, either with `:SPLIT`; the split is "train" by default.
        prompt: The caption of all images, where there is no column of captions.
        column: The column of the captions; a caption may be a list of several.
        empty: Whether a caption may be empty.

    Returns:
        The rows, what is wrong with some, and where the images are.

    Raises:
        LdmrtError: The package `datasets` is missing, the data set cannot be loaded, or has no images or captions.
    """
    try:
        import datasets
    except ImportError as error:
        raise unavailable(error, "data") from None

    name = str(data)
    rows = _loaded(datasets, name)
    images = [key for key, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if len(images) > 1 and "image" in images:
        images = ["image"]
    if len(images) > 1:
        raise LdmrtError("data", f"{name} has several columns of images", expected="one", found=", ".join(images))
    if not images:
        hint = f"--data {name.removeprefix(HUB)}, if it is a folder of images"
        raise LdmrtError("data", f"{name} has no column of images", found=", ".join(rows.features), hint=hint)
    if column not in rows.features and prompt is None and not empty:
        named = ", ".join(rows.features)
        raise LdmrtError("data", f"{name} has no column {column}", found=named, hint="--caption-column, or --prompt")
    if column in rows.features and prompt is not None:
        problem = f"--prompt is for images without captions, and {name} has a column {column}"
        raise LdmrtError("data", problem, hint="no --prompt")
    captions = _captions(rows, column) if column in rows.features else [prompt or ""] * len(rows)
    found = [_row(number, caption, column, empty=empty) for number, caption in enumerate(captions)]
    listed, problems = (
        [row for row in found if isinstance(row, Row)],
        [row for row in found if isinstance(row, Problem)],
    )
    undecoded = rows.cast_column(images[0], datasets.Image(decode=False)).select_columns(images)
    return listed, problems, HubImages(name, images[0], undecoded, _newest(rows.cache_files))


def _captions(rows: Any, column: str) -> list[Any]:
    """Return a column; of classes (`datasets.ClassLabel`) their names, and None for those without one."""
    captions, named = list(rows[column]), getattr(rows.features[column], "int2str", None)
    if named is None:
        return captions
    return [None if number is None or number < 0 else named(number) for number in captions]


def _row(number: int, caption: object, column: str, *, empty: bool) -> Row | Problem:
    """Return a row, or what is wrong with its caption."""
    try:
        return row_of(0, {"file_name": f"row {number}", column: caption}, column, empty=empty)
    except InvalidRow as invalid:
        return Problem(0, str(invalid))


def _loaded(datasets: Any, name: str) -> Any:
    """Load a split of a data set that was saved, of a folder of files, or of the hub."""
    path, _, split = name.removeprefix(HUB).partition(":")
    with _refusing(name):
        if any(os.path.exists(os.path.join(path, file)) for file in SAVED):
            loaded = datasets.load_from_disk(path)
            if isinstance(loaded, Mapping):
                if (split or SPLIT) not in loaded:
                    expected = ", ".join(loaded)
                    raise LdmrtError("data", f"{name} has no such split", expected=expected, found=split or SPLIT)
                return loaded[split or SPLIT]
            if split and str(loaded.split) != split:
                raise LdmrtError("data", f"{name} has no such split", expected=str(loaded.split), found=split)
            return loaded
        return datasets.load_dataset(path, split=split or SPLIT)


@contextlib.contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Turn whatever `datasets` raises into an `LdmrtError`: for a damaged file that may be any exception."""
    try:
        yield
    except LdmrtError:
        raise
    except Exception as error:
        raise LdmrtError("data", f"cannot load the data set {name}", found=first_line(error)) from None


def _newest(files: list[dict[str, Any]]) -> Path | None:
    """Return the file of a data set that was written last, by which its images count as unchanged."""
    paths = [Path(file["filename"]) for file in files]
    return max(paths, key=lambda path: path.stat().st_mtime_ns) if paths else None
