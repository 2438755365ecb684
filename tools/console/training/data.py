"""Open the data of a training; all of it is checked before the first step."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldmrt.runtime.errors import LdmrtError
from ldmrt.tools.console.progress import console, watched

if TYPE_CHECKING:
    from ldmrt.model.training.data.captioned import ImageFolder, Shape
    from ldmrt.tools.emoji.dataset import Emoji

SPRITES = "sprites.jsonl"
HINTS = {
    (True, False): "correct these, or train with --on-bad skip",
    (False, True): "a smaller --size, or train with --on-small skip",
    (True, True): "correct these, or train with --on-bad skip --on-small skip",
}


def holds_images(folder: Path) -> bool:
    """Tell whether a path has captioned images of the user's own, and not the sprites of `ldmrt data emoji`."""
    from ldmrt.model.training.data.metadata import METADATA, TABLE
    from ldmrt.model.training.data.sources.source import holds_any

    if any(os.path.lexists(folder / name) for name in (METADATA, TABLE)):
        return True
    return not os.path.lexists(folder / SPRITES) and holds_any(folder)


def open_data(
    folder: Path,
    size: int,
    *,
    batch: int = 1,
    styles: Sequence[str] = (),
    groups: Sequence[str] = (),
    layouts: Sequence[str] = ("large",),
    skip_bad: bool = False,
    skip_small: bool = False,
    prompt: str | None = None,
    column: str = "text",
    shapes: "Sequence[Shape]" = (),
    empty: bool = False,
    max_upscale: float = 2,
) -> "ImageFolder | Emoji":
    """Open captioned images: emoji if the folder has sprites.jsonl and no metadata, else the user's own.

    Args:
        folder: Images with metadata or with captions beside them, tar archives of such images, or the sprites that
            `ldmrt data emoji` builds.
        size: Pixels along a side of the training images.
        batch: Images per step; a smaller data set is reported.
        styles: Emoji styles to use; all if empty.
        groups: Emoji groups to use; all if empty.
        layouts: Emoji layouts to use.
        skip_bad: Whether images that cannot be read and lines without a caption are skipped; else they are an error.
        skip_small: Whether images that would be enlarged more often than that are skipped; else they are an error.
        prompt: The caption of the user's images that have none.
        column: The column of the captions in the user's metadata.
        shapes: Of the training images, where they are not squares.
        empty: Whether captions of the user's images may be empty.
        max_upscale: How many times the user's images may be enlarged.

    Raises:
        LdmrtError: The folder holds neither, or some of it cannot be used.
    """
    from ldmrt.model.training.data.captioned import SIZE
    from ldmrt.model.training.data.metadata import METADATA, TABLE
    from ldmrt.tools.emoji.dataset import Emoji

    if holds_images(folder):
        images = open_folder(
            folder, size, skip_bad=skip_bad, skip_small=skip_small, prompt=prompt, column=column, shapes=shapes,
            empty=empty, max_upscale=max_upscale,
        )  # fmt: skip
        if (count := len(images)) < batch:
            console.print(f"{count} images for batches of {batch}: a batch repeats some of them", highlight=False)
        return images
    if not os.path.lexists(folder / SPRITES):
        expected = f"{METADATA} or {TABLE}, or images with captions beside them, for your own images, or sprites.jsonl"
        raise LdmrtError(
            "data", f"nothing to train on in {folder}", expected=expected, hint=f"ldmrt data emoji {folder}"
        )
    data = Emoji.open(folder, styles=styles, groups=groups, layouts=layouts)
    if size != SIZE:
        raise LdmrtError("data", "unsupported size of emoji images", expected=f"--size {SIZE}", found=size)
    return data


def open_folder(
    folder: Path,
    size: int,
    *,
    skip_bad: bool = False,
    skip_small: bool = False,
    prompt: str | None = None,
    column: str = "text",
    shapes: "Sequence[Shape]" = (),
    empty: bool = False,
    max_upscale: float = 2,
    hints: Mapping[tuple[bool, bool], str] = HINTS,
) -> "ImageFolder":
    """Open a folder of images after reading every caption and decoding every image.

    Problems are reported together: as one error, or as skipped lines where `skip_bad` or `skip_small` allow it.
    `hints` say what to do about an error, by whether images are bad and whether some are small.
    """
    from ldmrt.model.training.data.captioned import ImageFolder
    from ldmrt.model.training.data.image_check import check_images
    from ldmrt.model.training.data.metadata import Problem, listing, refuse
    from ldmrt.model.training.data.sources.source import read_source

    source = read_source(folder, prompt, column, empty=empty)
    listed, rows, bad = source.listed, source.rows, source.problems
    misplaced = {problem.file_name for problem in bad}
    names = list(dict.fromkeys(row.file_name for row in rows if row.file_name not in misplaced))
    checks = check_images(folder, names, size, shapes, source.files, max_upscale)
    verdicts = {verdict.file_name: verdict for verdict in watched(checks, len(names), lambda _: "images checked")}
    small = list[Problem]()
    for row in dict.fromkeys(rows):
        if (verdict := verdicts.get(row.file_name)) is None:
            continue
        if verdict.unreadable:
            bad.append(Problem(row.line, verdict.unreadable, row.file_name))
        elif verdict.small:
            small.append(Problem(row.line, verdict.small, row.file_name))
    refused = (bad if not skip_bad else []) + (small if not skip_small else [])
    if refused:
        raise refuse(folder / listed, refused, hints[bool(bad) and not skip_bad, bool(small) and not skip_small])
    if skipped := bad + small:
        text = "\n".join(
            [f"skipped {len(skipped)} {'lines' if listed else 'images'} of {folder / listed}", *listing(skipped)]
        )
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    lost = frozenset(problem.file_name for problem in skipped if problem.file_name)
    known = {verdict.file_name: verdict.shape for verdict in verdicts.values() if verdict.shape}
    return ImageFolder(folder, tuple(rows), size, lost, listed, known, source.files)
