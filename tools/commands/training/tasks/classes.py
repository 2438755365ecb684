"""Run `ldmrt train classes`: a U-Net in latents that draws classes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ldmrt.runtime.errors import LdmrtError
from ldmrt.tools.console.drawing.images import grid, save_png
from ldmrt.tools.console.progress import console
from ldmrt.tools.console.training.checks import check, check_size, digest_of, preview
from ldmrt.tools.console.training.latents import Latents, latent_options
from ldmrt.tools.console.training.options import (
    Options,
    finite,
    prediction_option,
    training_options,
    weighting_options,
)
from ldmrt.tools.console.training.run import run_training

GUIDANCE = 3.0  # of previews


@click.command()
@training_options(steps=5500, batch=32, rate=8e-4, captions=False)
@click.option("--autoencoder", "vae_folder", type=click.Path(path_type=Path), required=True,
              help="A folder with vae/, such as the autoencoder's run.")  # fmt: skip
@prediction_option()
@click.option("--class-dropout", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.1,
              show_default=True, callback=finite,
              help="Share of classes that are left out, for guidance.")  # fmt: skip
@weighting_options
@latent_options
def classes(
    options: Options,
    vae_folder: Path,
    prediction: str,
    class_dropout: float,
    cache: str,
    cache_folder: Path | None,
    latents: str,
    loss_mask: str | None,
    **weighting: Any,
) -> None:
    """Train a U-Net that draws classes, which are the images' captions; write a whole checkpoint to OUT.

    Example: ldmrt train classes --data photos --caption-column kind --autoencoder runs/ae --out runs/classes
    """
    import copy

    import torch

    from ldmrt.export.components.torch_pipeline import torch_pipeline
    from ldmrt.model.checkpoint.checkpoint import Checkpoint
    from ldmrt.model.checkpoint.load import load_autoencoder
    from ldmrt.model.families.classes import PIPELINE
    from ldmrt.model.networks.plain_unet import PlainUNet
    from ldmrt.model.training.data.captioned import ImageFolder, digest
    from ldmrt.model.training.diffusion.objective import Objective
    from ldmrt.model.training.loop.run import Run
    from ldmrt.model.training.tasks import presets
    from ldmrt.model.training.tasks.classes import class_names, class_task
    from ldmrt.model.training.tasks.initialise import initialise

    keeping = Latents.of(cache=cache, cache_folder=cache_folder, latents=latents, loss_mask=loss_mask)
    settings, out, size, device = check(options), options.out, options.size, options.device
    vae = load_autoencoder(vae_folder).to(device)
    vae.config = replace(vae.config, sample_size=size)
    check_size(size, vae.config)
    weights = digest_of(vae)
    levels = len(presets.CLASSES.block_out_channels)
    if size % (unit := vae.config.factor * 2 ** (levels - 1)):
        raise LdmrtError("train", "unsupported --size", expected=f"a multiple of {unit}", found=size)
    data, held = options.open_data()
    if not isinstance(data, ImageFolder):
        raise LdmrtError("train", "classes are those of images of your own", hint="ldmrt data pictures, or your own")
    names = class_names([data, *([held] if isinstance(held, ImageFolder) else [])])
    listed = f"{len(names)} classes, from 0: {', '.join(names)}"
    options.once(lambda: console.print(listed, highlight=False, markup=False, soft_wrap=True))
    torch.manual_seed(options.seed)
    channels = vae.config.latent_channels
    network = PlainUNet(replace(
        presets.CLASSES, in_channels=channels, out_channels=channels, sample_size=size // vae.config.factor,
        num_class_embeds=len(names) + 1,
    ))  # fmt: skip
    initialise(network)
    scheduler = {**presets.SCHEDULER, "prediction_type": prediction}
    index = {"_class_name": PIPELINE, "id2label": {str(number): name for number, name in enumerate(names)}}
    run = Run(network, settings, {
        "task": "classes", "size": size, "data": data.digest, "validation": options.validation,
        "classes": digest(names), "autoencoder": weights, "scaling_factor": vae.config.scaling_factor,
        "prediction": prediction, "class_dropout": class_dropout, **weighting, **options.shaped, **keeping.shaped,
    })  # fmt: skip
    shown = list(range(min(len(names), preview(size))))

    def keep() -> None:
        checkpoint = Checkpoint(run.averaged().cpu(), copy.deepcopy(vae).cpu(), {}, {}, scheduler, index)
        made = torch_pipeline(checkpoint)(class_labels=shown, guidance_scale=GUIDANCE)
        save_png(out / "training" / f"classes-{run.step:06d}.png", grid(made.pixels, min(8, len(shown))))
        checkpoint.save(out)

    objective = Objective.of(scheduler, device, **weighting)
    kept, masks = keeping.open(options, data, vae, weights), keeping.masks(data, held)
    run_training(run, class_task(network, data, vae, objective, names, class_dropout, kept, masks), options, keep, held)
