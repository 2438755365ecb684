"""Run `ldmrt train upscaler`: a U-Net in pixels that enlarges."""

from dataclasses import replace
from pathlib import Path

import click

from ldmrt.tools.console.progress import console
from ldmrt.tools.console.training.checks import check, digest_of, preview
from ldmrt.tools.console.training.options import Options, training_options
from ldmrt.tools.console.training.run import run_training


@click.command()
@training_options(steps=2500, batch=16, rate=6e-4, captions=False)
@click.option("--autoencoder", "vae_folder", type=click.Path(path_type=Path),
              help="A folder with vae/, whose faults half of the small images get; none by default.")  # fmt: skip
@click.option("--crop", type=click.IntRange(min=8), default=64, show_default=True,
              help="Pixels along a side of the part of each image that a step learns from.")  # fmt: skip
def upscaler(options: Options, vae_folder: Path | None, crop: int) -> None:
    """Train a U-Net in pixels that doubles the size of images; write a whole checkpoint to OUT.

    Example: ldmrt train upscaler --data data/emoji128/train --size 128 --out runs/upscaler
    """
    import torch

    from ldmrt.model.checkpoint.checkpoint import Checkpoint
    from ldmrt.model.checkpoint.load import load_autoencoder
    from ldmrt.model.networks.plain_unet import PlainUNet
    from ldmrt.model.training.diffusion.objective import Objective
    from ldmrt.model.training.latents import to_tensor
    from ldmrt.model.training.loop.run import Run
    from ldmrt.model.training.tasks import presets
    from ldmrt.model.training.tasks.upscaler import Degradation, first_weights, psnr_of, upscaler_task

    settings, out, size, seed, device = check(options), options.out, options.size, options.seed, options.device
    vae = None if vae_folder is None else load_autoencoder(vae_folder).to(device)
    config = replace(presets.UPSCALER, sample_size=size)
    degradation = Degradation(crop, presets.UPSCALER.num_class_embeds or 0, vae)
    degradation.check(size, 2 ** (len(config.block_out_channels) - 1))
    data, held = options.open_data()
    torch.manual_seed(seed)
    network = PlainUNet(config)
    first_weights(network)
    run = Run(network, settings, {
        "task": "upscaler", "size": size, "crop": crop, "data": data.digest, "validation": options.validation,
        "autoencoder": None if vae is None else digest_of(vae), **options.shaped,
    })  # fmt: skip
    shown = [data.draw(seed + 1, i).image for i in range(preview(size))]

    def keep() -> None:
        unet = run.averaged()
        found = psnr_of(unet, to_tensor(shown, device), presets.NOISER)
        console.print(f"step {run.step}: PSNR {found:.2f} dB over {len(shown)} images", highlight=False)
        index = {"_class_name": "PixelUpscalePipeline", "max_noise_level": degradation.levels - 1, "enlarges": 2}
        noisers = {"low_res_scheduler": presets.NOISER}
        Checkpoint(unet.cpu(), None, {}, {}, presets.UPSCALER_SCHEDULER, index, noisers=noisers).save(out)

    objective = Objective.of(presets.UPSCALER_SCHEDULER, device)
    task = upscaler_task(network, data, degradation, objective, presets.NOISER)
    run_training(run, task, options, keep, held)
