"""Run `ldmrt evaluate`: score the images of a model, an emoji model, or a stage that enlarges."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldmrt.tools.console.outputs import Output
from ldmrt.tools.options.common import THREADS, Choice

from .scores.measures import ALL, MEASURES, OF_FEATURES, OF_NETWORK

if TYPE_CHECKING:
    from ldmrt.model.training.data.captioned import ImageFolder
    from ldmrt.runtime.pipeline.pipeline import Pipeline
    from ldmrt.tools.emoji.dataset import Emoji

    from .scores.clip import Clip
    from .scores.features import Extractor
    from .scores.network import Measured


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data",
    "folder",
    type=click.Path(path_type=Path),
    required=True,
    help="Captioned images, or the folder that `ldmrt data emoji` has built.",
)
@click.option("--style", default="noto", show_default=True, help="Style of the emoji.")
@click.option("--group", "groups", multiple=True, help="Emoji groups the model was trained on; all by default.")
@click.option(
    "--prompts",
    "count",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    help="How many images; of emoji as many trained pairs and as many held-out ones.",
)
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Steps of the sampler.")
@click.option("--guidance", default=3.0, show_default=True, help="Guidance scale; 1 is none.")
@click.option("--stage", help="Score this stage of a cascade instead: the PSNR of the images that it enlarges.")
@click.option("--noise-level", type=click.IntRange(min=0),
              help="With --stage: timestep whose noise is added to the small images.")  # fmt: skip
@click.option(
    "--measure",
    "measures",
    multiple=True,
    type=Choice(ALL),
    help="Measure this alone; may be given several times. All but clip, loss and bound by default.",
)
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    help="TorchScript file of the network whose features are compared; the bundle's autoencoder by default.",
)
@click.option("--clip", help="With --measure clip: a CLIP model's folder, or its name on the Hugging Face hub.")
@click.option("--validation", type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="Use the images alone that a training with the same --validation has held out.")  # fmt: skip
@click.option("--sheet", type=Output(), help="PNG file for the 16 likeliest copies, beside the images they copy.")
@click.option("--scheduler", help="Name of a sampler; the bundle's own by default.")
@click.option("--seed", default=0, show_default=True, help="Seed of the first image; the next ones count up.")
@THREADS
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def evaluate(
    bundle: Path,
    folder: Path,
    style: str,
    groups: tuple[str, ...],
    count: int,
    steps: int,
    guidance: float,
    stage: str | None,
    noise_level: int | None,
    measures: tuple[str, ...],
    features: Path | None,
    clip: str | None,
    validation: float | None,
    sheet: Path | None,
    scheduler: str | None,
    seed: int,
    threads: int,
    as_json: bool,
) -> None:
    """Make images of a folder's captions with BUNDLE and compare them with the folder's images.

    FID, KID, precision and recall compare features. Memorisation is the share of images that are twice as near to an
    image of the folder as to the next one. The CLIP score compares images with their captions.

    Loss and bound are of the network itself, on the folder's images and captions: its loss at 20 timesteps, and the
    variational bound of the images.

    With emoji, measure how often the images show the prompt's background and emoji. The emoji of an image is the
    nearest one of all sprites of the style. The last row scores the same images against the prompts of other images.

    With --stage, large images of --data are made small and enlarged again, and their PSNR is printed beside that of
    interpolation. In a cascade, small images that went through the first stage's autoencoder are scored too.

    Example: ldmrt evaluate out/emoji64 --data data/emoji --group animals-nature --group food-drink
    """
    from ldmrt.runtime.pipeline.opening import open_pipeline
    from ldmrt.tools.console.training.data import holds_images

    from .scores.autoencoder import reconstructed
    from .scores.enlarging import enlarging_scores
    from .scores.options import check_options, given_options
    from .scores.report import show_emoji, show_enlarging, show_scores

    own = stage is None and holds_images(folder)
    measures = measures or (MEASURES if own else ())
    check_options(stage, noise_level, own, measures, given_options())
    pipeline = open_pipeline(bundle, threads=threads)
    if stage is not None:
        coded = stage != pipeline.stage.name and "vae_encoder" in pipeline.engines
        through = partial(reconstructed, bundle, threads=threads) if coded else None
        asked = {"num_inference_steps": steps, "noise_level": noise_level, "scheduler": scheduler}
        found = enlarging_scores(pipeline, stage, folder, count, seed=seed, through=through, **asked)
        show_enlarging(*found, as_json)
        return
    wanted: dict[str, Any] = {"steps": steps, "guidance": guidance, "scheduler": scheduler, "seed": seed}
    if not measures:
        from .scores.emoji import emoji_scores

        show_emoji(*emoji_scores(pipeline, bundle, folder, style, groups, count, threads, **wanted), as_json)
        return
    from .scores.clip import open_clip
    from .scores.features import latent_features, network_features

    compared = not set(OF_FEATURES).isdisjoint(measures)
    extract = (network_features(features) if features else latent_features(bundle, threads)) if compared else None
    opened = partial(own_images, folder, validation) if own else partial(held_out, folder, style, groups)
    judge = open_clip(clip) if clip else None
    results = measured(pipeline, opened, count, measures, extract=extract, clip=judge, sheet=sheet, **wanted)
    show_scores(*results, str(features or "autoencoder") if compared else None, as_json)


def own_images(folder: Path, share: float | None, size: int) -> "ImageFolder":
    """Open captioned images of the user's own, as squares of this size, after checking all of them.

    Args:
        folder: Their folder.
        share: The share of them that a training holds out, which is used alone; None for all.
        size: Pixels along a side.
    """
    from ldmrt.model.training.validation import split
    from ldmrt.tools.console.training.data import HINTS, open_folder

    images = open_folder(folder, size, hints=dict.fromkeys(HINTS, "correct these, or remove their lines"))
    return images if share is None else split(images, share)[1]


def held_out(folder: Path, style: str, groups: Sequence[str], size: int) -> "Emoji":
    """Open the held-out pairs of emoji and backgrounds.

    Raises:
        LdmrtError: The model's images have another size.
    """
    from ldmrt.model.training.data.captioned import SIZE
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.tools.emoji.dataset import Emoji

    if size != SIZE:
        raise LdmrtError("data", "unsupported size of emoji images", expected=f"a model of size {SIZE}", found=size)
    return Emoji.open(folder, styles=[style], groups=groups, layouts=("large",), subset="held-out")


def measured(
    pipeline: "Pipeline",
    opened: "Callable[[int], ImageFolder | Emoji]",
    count: int,
    measures: Sequence[str],
    *,
    extract: "Extractor | None",
    clip: "Clip | None",
    sheet: Path | None,
    seed: int,
    **asked: Any,
) -> "tuple[dict[str, float], Measured]":
    """Score drawn images, and measure the network; all that can be refused is refused before.

    Args:
        pipeline: The model.
        opened: Opens the images at a size.
        count: How many images are drawn or measured.
        measures: Names of measures, at least one.
        extract: See `sample_scores`.
        clip: See `sample_scores`.
        sheet: See `sample_scores`.
        seed: See `sample_scores`; of the network, which images are measured, and the seed of their noise.
        asked: Other options of the request, by their short words.

    Returns:
        The scores of drawn images by name, none where no measure is of those; and the measures of the network.
    """
    from .scores.network import Measured, check_network, network_scores
    from .scores.samples import check_drawing, held_by, refuse_too_few, sample_scores

    of_network = [name for name in measures if name in OF_NETWORK]
    of_images = [name for name in measures if name not in OF_NETWORK]
    if of_images:
        check_drawing(pipeline, of_images)
    if of_network:
        check_network(pipeline, of_network)
    # Captions need no image, so the first stage's size does for them; images are compared with the last stage's.
    compared = not set(MEASURES).isdisjoint(measures)
    first, last = (pipeline.stages[place].stage.size for place in (0, -1 if compared else 0))
    data = {size: opened(size) for size in dict.fromkeys((last, first) if of_network else (last,))}
    refuse_too_few(held_by(data[last]), count, measures)
    scores: dict[str, float] = {}
    if of_images:
        scores = sample_scores(
            pipeline, data[last], count, of_images, extract=extract, clip=clip, sheet=sheet, seed=seed, **asked
        )
    if not of_network:
        return scores, Measured()
    images = data[first]
    return scores, network_scores(pipeline, images, min(count, len(images)), of_network, seed=seed)
