"""Run `ldmrt train classes`: a U-Net that draws classes, in latents or in pixels."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldmrt.runtime.errors import LdmrtError
from ldmrt.tools.console.drawing.images import grid, save_png
from ldmrt.tools.console.training.checks import check, check_size, digest_of, preview
from ldmrt.tools.console.training.images.captions import report_classes
from ldmrt.tools.console.training.latents import Latents, latent_options
from ldmrt.tools.console.training.options import (
    Options,
    betas_options,
    finite,
    prediction_option,
    training_options,
    weighting_options,
)
from ldmrt.tools.console.training.run import run_training

if TYPE_CHECKING:
    from ldmrt.model.networks.plain_unet import PlainUNetConfig
    from ldmrt.model.training.latents import FirstStage

GUIDANCE = 3.0  # of previews


@click.command()
@training_options(steps=5500, batch=32, rate=8e-4, captions=False)
@click.option("--autoencoder", "vae_folder", type=click.Path(path_type=Path),
              help="A folder with vae/, such as the autoencoder's run; left out for a U-Net in pixels.")  # fmt: skip
@prediction_option("sample")
@click.option("--class-dropout", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.1,
              show_default=True, callback=finite,
              help="Share of classes that are left out, for guidance.")  # fmt: skip
@betas_options
@weighting_options
@latent_options
def classes(
    options: Options,
    vae_folder: Path | None,
    prediction: str,
    class_dropout: float,
    beta_schedule: str | None,
    zero_terminal_snr: bool,
    cache: str,
    cache_folder: Path | None,
    latents: str,
    loss_mask: str | None,
    **weighting: Any,
) -> None:
    """Train a U-Net that draws classes, which are the images' captions; write a whole checkpoint to OUT.

    It works in an autoencoder's latents, or without --autoencoder in pixels.

    Example: ldmrt train classes --data photos --caption-column kind --autoencoder runs/ae --out runs/classes
    """
    import copy

    import torch

    from ldmrt.export.components.torch_pipeline import torch_pipeline
    from ldmrt.model.checkpoint.checkpoint import Checkpoint
    from ldmrt.model.checkpoint.load import load_first_stage
    from ldmrt.model.families.classes import PIPELINE, PIXEL_PIPELINE
    from ldmrt.model.networks.plain_unet import PlainUNet
    from ldmrt.model.training.data.captioned import ImageFolder
    from ldmrt.model.training.diffusion.betas import differing_betas, with_betas
    from ldmrt.model.training.diffusion.objective import Objective
    from ldmrt.model.training.loop.run import Run
    from ldmrt.model.training.tasks import presets
    from ldmrt.model.training.tasks.classes import class_task, classes_of_captions
    from ldmrt.model.training.tasks.initialise import initialise

    keeping = Latents.of(cache=cache, cache_folder=cache_folder, latents=latents, loss_mask=loss_mask)
    usual = {
        **(presets.UNCONDITIONAL_SCHEDULER if vae_folder is None else presets.SCHEDULER), "prediction_type": prediction,
    }  # fmt: skip
    scheduler = with_betas(usual, beta_schedule, zero_terminal_snr=zero_terminal_snr)
    settings, out, size, device = check(options), options.out, options.size, options.device
    vae = None if vae_folder is None else load_first_stage(vae_folder).to(device)
    if vae is None:
        keeping.check_unused()
    config, weights = _config(size, vae), vae and digest_of(vae)
    data, held = options.open_data()
    if not isinstance(data, ImageFolder):
        raise LdmrtError("train", "classes are those of images of your own", hint="ldmrt data pictures, or your own")
    kinds = classes_of_captions([data, *([held] if isinstance(held, ImageFolder) else [])])
    report_classes(options, kinds)
    torch.manual_seed(options.seed)
    network = PlainUNet(replace(config, num_class_embeds=len(kinds.names) + 1))
    initialise(network)
    index = {"_class_name": PIXEL_PIPELINE if vae is None else PIPELINE, "id2label": kinds.labels}
    run = Run(network, settings, {
        "task": "classes", "size": size, "data": data.digest, "validation": options.validation,
        "classes": kinds.digest, "autoencoder": weights,
        "scaling_factor": vae and vae.config.scaling_factor,
        "prediction": prediction, "class_dropout": class_dropout, **weighting, **options.shaped, **keeping.shaped,
        **differing_betas(scheduler, usual),
    })  # fmt: skip
    shown = list(range(min(len(kinds.names), preview(size))))

    def keep() -> None:
        decoder = None if vae is None else copy.deepcopy(vae).cpu()
        checkpoint = Checkpoint(run.averaged().cpu(), decoder, {}, {}, scheduler, index)
        made = torch_pipeline(checkpoint)(class_labels=shown, guidance_scale=GUIDANCE)
        save_png(out / "training" / f"classes-{run.step:06d}.png", grid(made.pixels, min(8, len(shown))))
        checkpoint.save(out)

    objective = Objective.of(scheduler, device, **weighting)
    kept = None if vae is None else keeping.open(options, data, vae, str(weights))
    task = class_task(network, data, vae, objective, kinds, class_dropout, kept, keeping.masks(data, held))
    run_training(run, task, options, keep, held)


def _config(size: int, vae: "FirstStage | None") -> "PlainUNetConfig":
    """Return the config of a U-Net for images of this size, without its classes.

    Raises:
        LdmrtError: The size is not one that the networks can halve, or the autoencoder is not for RGB images.
    """
    from ldmrt.model.training.tasks import presets

    config, factor = (presets.UNCONDITIONAL, 1) if vae is None else (presets.CLASSES, vae.config.factor)
    if vae is not None:
        vae.config = replace(vae.config, sample_size=size)
        check_size(size, vae.config)
        channels = vae.config.latent_width
        config = replace(config, in_channels=channels, out_channels=channels)
    if size % (unit := factor * 2 ** (len(config.block_out_channels) - 1)):
        raise LdmrtError("train", "unsupported --size", expected=f"a multiple of {unit}", found=size)
    return replace(config, sample_size=size // factor)
