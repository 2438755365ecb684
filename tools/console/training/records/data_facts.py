"""Describe the images that a model was trained on for its card."""

from collections import Counter
from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING

from .markdown import code

if TYPE_CHECKING:
    from ldmrt.model.training.data.captioned import Captioned, ImageFolder, Shape
    from ldmrt.model.training.data.regularisation import Regularisation

NAMED = 10  # licences; the others are counted together
Facts = list[tuple[str, str]]  # names and Markdown


def facts_of(
    data: "Captioned | None", held: "Captioned | None", regularisation: "Regularisation | None" = None
) -> Facts:
    """Return how many images there are, their sizes and their licences, as far as they are known. None is opened.

    Args:
        data: The images to train on.
        held: Those that are held out; None for none.
        regularisation: Those that are learned beside the others; None for none.
    """
    others = Facts() if regularisation is None else _beside(regularisation)
    train, out = (_folder_of(images) for images in (data, held))
    if train is None:
        pairs = f"{len(data)} pairs of an emoji and a background" if isinstance(data, Sized) else None
        return [("images", pairs), *others] if pairs else others
    known = train.shapes if out is None else {**train.shapes, **out.shapes}
    names, names_out = _names(train), [] if out is None else _names(out)
    count = f"{len(names)}, and {len(names_out)} held out" if names_out else str(len(names))
    facts = [("images", count)]
    if shapes := [known[name] for name in (*names, *names_out) if name in known]:
        facts.append(("sizes", _sizes(shapes)))
    if licences := _licences([train] if out is None else [train, out]):
        facts.append(("licences", licences))
    return facts + others


def _beside(regularisation: "Regularisation") -> Facts:
    """Describe regularisation images."""
    images = regularisation.images
    facts = [("regularisation images", f"{len(_names(images))}, with a weight of {regularisation.weight:g}")]
    licences = _licences([images])
    return [*facts, ("their licences", licences)] if licences else facts


def _folder_of(images: "Captioned | None") -> "ImageFolder | None":
    from ldmrt.model.training.data.buckets import BucketedImages
    from ldmrt.model.training.data.captioned import ImageFolder

    folder = images.images if isinstance(images, BucketedImages) else images
    return folder if isinstance(folder, ImageFolder) else None


def _names(images: "ImageFolder") -> list[str]:
    """Return the files of the images that are used, each once."""
    return list(dict.fromkeys(row.file_name for row in images.rows if row.file_name not in images.skipped))


def _sizes(shapes: "Sequence[Shape]") -> str:
    """Write the smallest, the median and the largest width and height, by area."""
    ordered = sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape))
    least, middle, most = ("{} × {}".format(*ordered[i]) for i in (0, (len(ordered) - 1) // 2, -1))
    return f"{least} pixels" if least == most else f"{least} to {most} pixels, median {middle}"


def _licences(folders: "Sequence[ImageFolder]") -> str:
    """Count the images of each licence that the metadata states; nothing where it states none."""
    from ldmrt.model.training.data.metadata import read_licences

    folder = folders[0]
    stated = read_licences(folder.folder / folder.listed) if folder.listed else {}
    if not stated:
        return ""
    of = {row.file_name: stated.get(row.line) for each in folders for row in reversed(each.rows)}
    counts = Counter(of[name] for each in folders for name in _names(each))
    none = counts.pop(None, 0)
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0] or ""))
    named = [f"{code(licence or '')} {count}" for licence, count in ordered[:NAMED]]
    rest = sum(count for _, count in ordered[NAMED:])
    return ", ".join([*named, *([f"others {rest}"] if rest else []), *([f"not stated {none}"] if none else [])])
