"""Score images that a bundle draws: FID, KID, precision, recall and copies beside a folder's; CLIP score."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldmrt.model.scores.clip_score import clip_score
from ldmrt.model.scores.frechet import frechet_distance
from ldmrt.model.scores.kernel import kernel_distance
from ldmrt.model.scores.manifold import precision_and_recall
from ldmrt.model.scores.nearest import Neighbours, nearest_neighbours
from ldmrt.model.training.data.captioned import Captioned, ImageFolder, square
from ldmrt.model.training.data.sources.files import File
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.tools.console.drawing.images import grid, save_png
from ldmrt.tools.console.progress import watched
from ldmrt.tools.options.to_request import request_of

from .measures import LEAST, LEAST_OF_FOLDER, MEASURES, OF_FEATURES

if TYPE_CHECKING:
    from ldmrt.tools.emoji.dataset import Emoji

    from .clip import Clip
    from .features import Extractor

Images = NDArray[np.uint8]  # (N, H, W, 3)
BATCH = 10  # images per call
COMPARED = 32  # pixels along a side of images that are searched for copies
SHOWN = 16  # of the likeliest copies, on a sheet


@dataclass(frozen=True)
class FolderImages:
    """Holds what scores need of a folder's images: small pixels, and features where a measure asks for them."""

    files: tuple[File, ...]
    small: Images
    features: NDArray[np.float64] | None


def sample_scores(
    pipeline: Pipeline,
    data: "ImageFolder | Emoji",
    count: int,
    measures: Sequence[str] = MEASURES,
    *,
    extract: "Extractor | None" = None,
    clip: "Clip | None" = None,
    sheet: Path | None = None,
    seed: int = 0,
    **asked: object,
) -> dict[str, float]:
    """Draw images of a folder's captions, and score them beside all of the folder's images or by the captions.

    Args:
        pipeline: The model; images are of its last stage's size.
        data: Captioned images, those that the model was trained on; emoji for the CLIP score alone.
        count: How many images are drawn, 1 or more.
        measures: Names of `MEASURES`, or "clip".
        extract: Computes the features; not needed for memorisation or the CLIP score.
        clip: Computes CLIP's features of images and captions, for the CLIP score.
        sheet: A PNG file for the likeliest copies, each beside its nearest image of the folder.
        seed: Which captions, and the seed of the first image; the next ones count up.
        asked: Other options of the request, by their short words.

    Returns:
        The measures by name, "images" and "reference images": how many were compared. The CLIP score alone needs no
        reference.

    Raises:
        LdmrtError: There are too few of either, or the model takes an image.
    """
    check_drawing(pipeline, measures)
    refuse_too_few(held_by(data), count, measures)
    used = extract if not set(OF_FEATURES).isdisjoint(measures) else None
    compared = not set(MEASURES).isdisjoint(measures)
    reference = reference_of(data, used) if compared and isinstance(data, ImageFolder) else None
    if reference is not None and "memorisation" in measures:
        nearest_neighbours(reference.small, reference.small[:1])  # refuses a folder of equal images
    images = drawn(pipeline, data, count, seed, **asked)
    scores: dict[str, float] = {"images": len(images)}
    if reference is not None:
        scores["reference images"] = len(reference.files)
    if used is not None and reference is not None and reference.features is not None:
        scores |= feature_scores(reference.features, in_batches(used, images), measures)
    if reference is not None and "memorisation" in measures:
        neighbours = nearest_neighbours(reference.small, shrunk(images))
        scores["memorisation"] = neighbours.copied
        scores["lowest ratio"] = float(neighbours.ratio.min())
        if sheet is not None:
            save_png(sheet, copies(images, reference.files, neighbours))
    if clip is not None:
        scores["clip"] = caption_score(clip, images, captions_of(data, count, seed))
    return scores


def check_drawing(pipeline: Pipeline, measures: Sequence[str]) -> None:
    """Refuse a model that draws no image of a caption alone, or one without captions where they are compared.

    Raises:
        LdmrtError: Says what the model needs, or that it reads no prompt.
    """
    if pipeline.stage.takes_image:
        raise LdmrtError("evaluate", "this model needs an image to start from", hint="--stage, for one that enlarges")
    if "clip" in measures and pipeline.stage.prompt is None:
        hint = "--measure of something else"
        raise LdmrtError("evaluate", "this model reads no prompt that its images could be compared with", hint=hint)


def caption_score(clip: "Clip", images: Images, captions: Sequence[str]) -> float:
    """Return the CLIP score of images (N, H, W, 3) and the caption of each."""
    parts = range(0, len(images), BATCH)
    found = [clip(images[i : i + BATCH], captions[i : i + BATCH]) for i in parts]
    return clip_score(*map(np.concatenate, zip(*found, strict=True)))


def feature_scores(
    real: NDArray[np.float64], generated: NDArray[np.float64], measures: Sequence[str]
) -> dict[str, float]:
    """Return the measures that are of features, (N, d) and (M, d), by name."""
    scores = dict[str, float]()
    if "fid" in measures:
        scores["fid"] = frechet_distance(real, generated)
    if "kid" in measures:
        scores["kid"] = kernel_distance(real, generated)
    if not {"precision", "recall"}.isdisjoint(measures):
        both = dict(zip(("precision", "recall"), precision_and_recall(real, generated), strict=True))
        scores |= {name: value for name, value in both.items() if name in measures}
    return scores


def held_by(data: "ImageFolder | Emoji") -> int:
    """Return how many images there are, each file once."""
    return len(files_of(data)) if isinstance(data, ImageFolder) else len(data)


def refuse_too_few(held: int, count: int, measures: Sequence[str]) -> None:
    """Refuse measures of more images than are asked for or than a folder holds, before any is drawn.

    Args:
        held: How many images the folder holds.
        count: How many images are asked for.
        measures: Names of measures.

    Raises:
        LdmrtError: Says how many are needed, and of which.
    """
    for name in measures:
        for least, found, hint in (
            (LEAST[name], count, f"--prompts {LEAST[name]} or more"),
            (LEAST_OF_FOLDER[name], held, f"more images in --data: {name} compares them"),
        ):
            if found < least:
                raise LdmrtError(
                    "evaluate", "too few images for this score", expected=f"at least {least}", found=found, hint=hint
                )


def files_of(data: ImageFolder) -> tuple[File, ...]:
    """Return each file of a folder once, also where several captions name it."""
    return tuple(data.file(name) for name in dict.fromkeys(row.file_name for row in data.rows))


def reference_of(data: ImageFolder, extract: "Extractor | None") -> FolderImages:
    """Read each file of a folder once."""
    files = files_of(data)
    small, features = list[Images](), list[NDArray[np.float64]]()
    parts = [files[i : i + BATCH] for i in range(0, len(files), BATCH)]
    for part in watched(parts, len(parts), lambda _: "batches of the folder's images"):
        images = np.stack([square(file, data.size) for file in part])
        small.append(shrunk(images))
        if extract is not None:
            features.append(extract(images))
    return FolderImages(files, np.concatenate(small), np.concatenate(features) if features else None)


def drawn(pipeline: Pipeline, data: Captioned, count: int, seed: int, **asked: object) -> Images:
    """Draw images of the captions that a stream has, or of none where the model reads none."""
    found, parts = list[Images](), [range(i, min(i + BATCH, count)) for i in range(0, count, BATCH)]
    prompted = pipeline.stage.prompt is not None
    captions = captions_of(data, count, seed)
    for rows in watched(parts, len(parts), lambda rows: f"images to {rows.stop}"):
        words: dict[str, object] = {"seed": [seed + i for i in rows], **asked}
        if prompted:
            words["prompt"] = [captions[i] for i in rows]
        else:
            words["count"] = len(rows)
        found.append(pipeline.generate(request_of(words)).pixels)
    return np.concatenate(found)


def captions_of(data: Captioned, count: int, seed: int) -> list[str]:
    """Return the captions that images are drawn of."""
    return [data.caption(seed, i) for i in range(count)]


def in_batches(extract: "Callable[[Images], NDArray[np.float64]]", images: Images) -> NDArray[np.float64]:
    """Compute the features (N, d) of images, a few at a time."""
    return np.concatenate([extract(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])


def shrunk(images: Images) -> Images:
    """Resize images to `COMPARED` pixels a side; smaller ones stay as they are."""
    if max(images.shape[1:3]) <= COMPARED:
        return images
    size = (COMPARED, COMPARED)
    return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)) for image in images])


def copies(images: Images, files: Sequence[File], neighbours: Neighbours) -> Images:
    """Arrange the likeliest copies in two columns of pairs: the drawn image, then its nearest of the folder."""
    pairs = [
        image
        for i in neighbours.worst[:SHOWN]
        for image in (images[i], square(files[neighbours.index[i]], images.shape[1]))
    ]
    return grid(np.stack(pairs), 4)
