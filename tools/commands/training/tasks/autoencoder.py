"""Run `ldmrt train autoencoder`."""

from typing import Any

import click
import numpy as np

from ldmrt.tools.console.drawing.images import grid, save_png
from ldmrt.tools.console.progress import console
from ldmrt.tools.console.training.checks import check, check_size, preview
from ldmrt.tools.console.training.first_stage import FirstStage, batches_of, first_stage_options
from ldmrt.tools.console.training.options import Options, training_options
from ldmrt.tools.console.training.run import run_training


@click.command()
@training_options(steps=6000, batch=8, rate=1e-3, captions=False)
@first_stage_options
def autoencoder(options: Options, **values: Any) -> None:
    """Train an autoencoder, which turns images into latents and back; write OUT/vae.

    With --validation each checkpoint is measured on held-out images, whose latents give the scaling factor. With
    --decoder-of the decoder alone is trained, and the scaling factor is kept.

    Example: ldmrt train autoencoder --data data/emoji --style noto --out runs/ae
    """
    import torch

    from ldmrt.model.checkpoint.checkpoint import save_network, with_scaling_factor
    from ldmrt.model.config import to_config
    from ldmrt.model.networks.autoencoder import Autoencoder, moments
    from ldmrt.model.training.data.buckets import BucketedImages
    from ldmrt.model.training.first_stage.report import report
    from ldmrt.model.training.latents import to_images, to_tensor
    from ldmrt.model.training.loop.run import Run
    from ldmrt.model.training.tasks.autoencoder import autoencoder_task, finished

    stage = FirstStage(**values)
    parts = stage.parts()
    settings, out, size, seed, device = check(options), options.out, options.size, options.seed, options.device
    network, codebook = stage.network(out, size, seed)
    check_size(size, network.config)
    data, held = options.open_data(network.config.factor)
    side = min(min(shape) for shape, _ in data.groups) if isinstance(data, BucketedImages) else size
    discriminator, perceptual = stage.opponents(seed, device, side)
    about = {"task": "autoencoder", "size": size, "data": data.digest, "validation": options.validation}
    run = Run(network, settings, about | options.shaped | stage.about(network, perceptual), discriminator)
    task = autoencoder_task(
        network, data, parts, perceptual=perceptual, discriminator=discriminator, codebook=codebook,
        taken=lambda: run.step, loss_scale=lambda: run.loss_scale.scale if run.loss_scale else 1.0,
        across=lambda value, count: run.processes.mean(value, count),
    )  # fmt: skip
    half, squares = preview(size), data.images if isinstance(data, BucketedImages) else data
    shown = np.stack([squares.draw(seed + 1, i).image for i in range(2 * half)])

    @torch.no_grad()
    def keep() -> None:
        vae = finished(run.averaged())
        x = to_tensor(list(shown), device)
        encoded = vae.encode(x)
        mean = moments(encoded)[0] if isinstance(vae, Autoencoder) else encoded
        back = vae.decode(mean).clamp(-1, 1)
        psnr = -10 * ((back - x) / 2).square().mean().log10().item()
        console.print(f"step {run.step}: PSNR {psnr:.2f} dB over {len(shown)} images", highlight=False)
        pairs = np.stack([shown[:half], to_images(back)[:half]], axis=1).reshape(2 * half, *shown.shape[1:])
        save_png(out / "training" / f"autoencoder-{run.step:06d}.png", grid(pairs, min(8, len(pairs))))
        factor = 1.0 / mean.std().item()  # Rombach et al. 2022, appendix G: unit variance
        if held is not None:
            measured = report(vae, batches_of(held, size, device, skip_unreadable=settings.skip_unreadable))
            console.print(f"step {run.step}, {measured.images} held-out images: {measured}", highlight=False)
            factor = measured.scaling_factor
        if stage.decoder_of is None:
            with_scaling_factor(vae, factor)
        kind = "AutoencoderKL" if isinstance(vae, Autoencoder) else "VQModel"
        save_network(out / "vae", vae, to_config(kind, vae.config), torch.float32)

    run_training(run, task, options, keep, held)
