"""Run `ldmrt evaluate`: score the images of a model, an emoji model, or a stage that enlarges."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from ldmrt.tools.console.outputs import Output
from ldmrt.tools.options.common import THREADS, Choice
from ldmrt.tools.options.to_request import request_of

from .scores.measures import MEASURES, OF_FEATURES

if TYPE_CHECKING:
    from ldmrt.runtime.pipeline.pipeline import Pipeline
    from ldmrt.tools.emoji.dataset import Sprite

    from .scores.enlarging import Scores

BATCH = 10  # images per call


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
@click.option("--measure", "measures", multiple=True, type=Choice(MEASURES),
              help="Measure this alone; may be given several times. All by default.")  # fmt: skip
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    help="TorchScript file of the network whose features are compared; the bundle's autoencoder by default.",
)
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
    sheet: Path | None,
    scheduler: str | None,
    seed: int,
    threads: int,
    as_json: bool,
) -> None:
    """Make images of a folder's captions with BUNDLE and compare them with the folder's images.

    FID, KID, precision and recall compare features. Memorisation is the share of images that are twice as near to an
    image of the folder as to the next one.

    With emoji, measure how often the images show the prompt's background and emoji. The emoji of an image is the
    nearest one of all sprites of the style. The last row scores the same images against the prompts of other images.

    With --stage, large images of --data are made small and enlarged again, and their PSNR is printed beside that of
    interpolation. In a cascade, small images that went through the first stage's autoencoder are scored too.

    Example: ldmrt evaluate out/emoji64 --data data/emoji --group animals-nature --group food-drink
    """
    from ldmrt.runtime.pipeline.opening import open_pipeline
    from ldmrt.tools.console import tables
    from ldmrt.tools.console.progress import watched
    from ldmrt.tools.console.training.data import holds_images
    from ldmrt.tools.emoji.dataset import Emoji
    from ldmrt.tools.emoji.scoring import References

    from .scores.enlarging import enlarging_scores

    own = stage is None and holds_images(folder)
    check_options(stage, noise_level, own)
    pipeline = open_pipeline(bundle, threads=threads)
    if stage is not None:
        coded = stage != pipeline.stage.name and "vae_encoder" in pipeline.engines
        through = partial(reconstructed, bundle, threads=threads) if coded else None
        asked = {"num_inference_steps": steps, "noise_level": noise_level, "scheduler": scheduler}
        found = enlarging_scores(pipeline, stage, folder, count, seed=seed, through=through, **asked)
        show_enlarging(*found, as_json)
        return
    if own:
        wanted = {"steps": steps, "guidance": guidance, "scheduler": scheduler, "seed": seed}
        show_samples(pipeline, bundle, folder, count, measures, features, sheet, threads, as_json, **wanted)
        return
    references = References(*_of_style(folder, style))
    scores: dict[str, dict[str, float]] = {}
    for title, subset in (("trained pairs", "train"), ("held-out pairs", "held-out")):
        pairs = Emoji.open(folder, styles=[style], groups=groups, subset=subset).pairs
        chosen = [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))[:count]]
        recognised = []
        batches = [range(i, min(i + BATCH, len(chosen))) for i in range(0, len(chosen), BATCH)]
        for rows in watched(batches, len(batches), lambda rows: f"images to {rows.stop}"):
            prompts = [Emoji.prompt(*chosen[i]) for i in rows]
            seeds = [seed + i for i in rows]
            words = {"prompt": prompts, "seed": seeds, "steps": steps, "guidance": guidance, "scheduler": scheduler}
            result = pipeline.generate(request_of(words))
            recognised += [references.identify(image) for image in result.pixels]
        scores[title] = score(chosen, recognised)
        if subset == "train":
            scores["trained pairs, shuffled prompts"] = score([*chosen[1:], chosen[0]], recognised)
    shown = [Emoji.compose(references.pictures, *pair) for pair in chosen[:100]]
    pictures = np.stack(shown)
    error = np.square(reconstructed(bundle, pictures, threads) - pictures).mean(axis=(1, 2, 3))
    psnr = float(np.mean(10 * np.log10(255**2 / error)))
    if as_json:
        click.echo(json.dumps({**scores, "autoencoder": {"pictures": len(shown), "psnr": psnr}}, indent=2))
        return
    cells = [
        (title, f"{row['pictures']:.0f}", f"{row['background']:.3f}", f"{row['identity']:.3f}")
        for title, row in scores.items()
    ]
    tables.show(("", "images", "background", "identity"), cells)
    click.echo(f"autoencoder: PSNR {psnr:.1f} dB over {len(shown)} images of held-out pairs")


def check_options(stage: str | None, noise_level: int | None, own: bool) -> None:
    """Refuse options that would have no effect.

    Args:
        stage: The stage that enlarges.
        noise_level: Its noise level.
        own: Whether the images are of one's own, and no stage is scored.

    Raises:
        LdmrtError: Names the option.
    """
    from click.core import ParameterSource

    from ldmrt.runtime.errors import LdmrtError

    if stage is None and noise_level is not None:
        raise LdmrtError("evaluate", "--noise-level needs --stage", hint="--stage NAME, or no --noise-level")
    emoji = {"style": "--style", "groups": "--group"}
    samples = {"measures": "--measure", "features": "--features", "sheet": "--sheet"}
    idle, where = samples, "without captioned images in --data"
    if own:
        idle, where = emoji, "with images of your own"
    elif stage is not None:
        idle, where = {**emoji, **samples, "guidance": "--guidance"}, "with --stage"
    source = click.get_current_context().get_parameter_source
    for name, option in idle.items():
        if source(name) is ParameterSource.COMMANDLINE:
            raise LdmrtError("evaluate", f"{option} has no effect {where}", hint=f"no {option}")


def show_samples(
    pipeline: "Pipeline",
    bundle: Path,
    folder: Path,
    count: int,
    measures: Sequence[str],
    features: Path | None,
    sheet: Path | None,
    threads: int,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Score a model's images beside those of a folder, see `sample_scores`, and print a table or JSON."""
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.tools.console import tables

    from .scores.features import latent_features, network_features
    from .scores.samples import sample_scores

    measures, extract = measures or MEASURES, None
    compared = not set(OF_FEATURES).isdisjoint(measures)
    if sheet is not None and "memorisation" not in measures:
        raise LdmrtError(
            "evaluate", "--sheet needs --measure memorisation", hint="--measure memorisation, or no --sheet"
        )
    if features is not None and not compared:
        raise LdmrtError("evaluate", "--features has no effect on memorisation", hint="no --features")
    if compared:
        extract = network_features(features) if features else latent_features(bundle, threads)
    scores = sample_scores(pipeline, folder, count, measures, extract=extract, sheet=sheet, **wanted)
    if as_json:
        named = {"features": str(features or "autoencoder")} if compared else {}
        click.echo(json.dumps({**scores, **named}, indent=2))
        return
    tables.show(("measure", "value"), [(name, f"{value:.4g}") for name, value in scores.items()])


def show_enlarging(count: int, psnrs: "Scores", as_json: bool) -> None:
    """Print what `enlarging_scores` returned, as JSON or as a table."""
    from ldmrt.tools.console import tables

    if as_json:
        click.echo(json.dumps({"pictures": count, "psnr": psnrs}, indent=2))
        return
    titles = list(next(iter(psnrs.values())))
    rows = [(kind, str(count), *(f"{row[title]:.2f}" for title in titles)) for kind, row in psnrs.items()]
    tables.show(("small images", "images", *(f"{title}, dB" for title in titles)), rows)


def reconstructed(bundle: Path, pictures: NDArray[np.uint8], threads: int = 0) -> NDArray[np.float32]:
    """Encode and decode images with a bundle's autoencoder; the encoder's mean is decoded.

    Args:
        bundle: The bundle.
        pictures: (N, H, W, 3), uint8.
        threads: CPU threads of ONNX Runtime; 0 takes one per core.

    Returns:
        (N, H, W, 3), levels from 0 to 255 that are not rounded.
    """
    from ldmrt.runtime.backends.ort.engine import OrtEngine
    from ldmrt.runtime.bundle.bundle import Bundle

    opened = Bundle.open(bundle, check=False)
    names = ("vae_encoder", "vae_decoder")
    encoder, decoder = (OrtEngine(name, opened.model(name), threads=threads) for name in names)
    decoded = list[NDArray[np.float32]]()
    for i in range(0, len(pictures), BATCH):
        x = pictures[i : i + BATCH].transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        mean = encoder(sample=x)["latent_parameters"][:, : opened.stage.space.channels]
        decoded.append(decoder(latent_sample=mean)["sample"])
    return (np.concatenate(decoded).clip(-1, 1).transpose(0, 2, 3, 1) + 1) * 127.5


def score(prompts: "Sequence[tuple[Sprite, str]]", recognised: "Sequence[tuple[str, Sprite]]") -> dict[str, float]:
    """Return the shares of images whose background and whose emoji are those of the prompt.

    Args:
        prompts: The (sprite, background) of each prompt.
        recognised: The (background, sprite) of each image.
    """
    background = np.mean([b == name for (_, b), (name, _) in zip(prompts, recognised, strict=True)])
    identity = np.mean([s.code == sprite.code for (s, _), (_, sprite) in zip(prompts, recognised, strict=True)])
    return {"pictures": len(prompts), "background": float(background), "identity": float(identity)}


def _of_style(folder: Path, style: str) -> "tuple[NDArray[np.uint8], list[Sprite]]":
    """Load the pixels of all sprites, and the sprites of one style."""
    from ldmrt.tools.emoji.dataset import load_sprites

    pictures, sprites = load_sprites(folder)
    return pictures, [sprite for sprite in sprites if sprite.style == style]
