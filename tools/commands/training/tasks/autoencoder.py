"""Run `ldmrt train autoencoder`."""

from dataclasses import replace

import click
import numpy as np

from ldmrt.tools.console.drawing.images import grid, save_png
from ldmrt.tools.console.progress import console
from ldmrt.tools.console.training.checks import check, check_size, preview
from ldmrt.tools.console.training.options import Options, training_options
from ldmrt.tools.console.training.run import run_training


@click.command()
@training_options(steps=6000, batch=8, rate=1e-3)
def autoencoder(options: Options) -> None:
    """Train an autoencoder, which turns images into latents and back; write OUT/vae.

    Example: ldmrt train autoencoder --data data/emoji --style noto --out runs/ae
    """
    import torch

    from ldmrt.model.checkpoint.checkpoint import save_network, with_scaling_factor
    from ldmrt.model.config import to_config
    from ldmrt.model.networks.autoencoder import Autoencoder, moments
    from ldmrt.model.training.data.buckets import BucketedImages
    from ldmrt.model.training.latents import to_tensor
    from ldmrt.model.training.loop.run import Run
    from ldmrt.model.training.tasks import presets
    from ldmrt.model.training.tasks.autoencoder import autoencoder_task
    from ldmrt.model.training.tasks.initialise import initialise

    settings, out, size, seed, device = check(options), options.out, options.size, options.seed, options.device
    config = replace(presets.AUTOENCODER, sample_size=size)
    check_size(size, config)
    data, held = options.open_data(config.factor)
    torch.manual_seed(seed)
    network = Autoencoder(config)
    initialise(network)
    run = Run(network, settings, {
        "task": "autoencoder", "size": size, "data": data.digest, "validation": options.validation, **options.shaped,
    })  # fmt: skip
    half, squares = preview(size), data.images if isinstance(data, BucketedImages) else data
    shown = np.stack([squares.draw(seed + 1, i).image for i in range(2 * half)])

    @torch.no_grad()
    def keep() -> None:
        vae = run.averaged()
        x = to_tensor(list(shown), device)
        mean, _ = moments(vae.encode(x))
        back = vae.decode(mean).clamp(-1, 1)
        psnr = -10 * ((back - x) / 2).square().mean().log10().item()
        console.print(f"step {run.step}: PSNR {psnr:.2f} dB over {len(shown)} images", highlight=False)
        pictures = np.rint((back.cpu().permute(0, 2, 3, 1).numpy() + 1) * 127.5).astype(np.uint8)
        pairs = np.stack([shown[:half], pictures[:half]], axis=1).reshape(2 * half, *shown.shape[1:])
        save_png(out / "training" / f"autoencoder-{run.step:06d}.png", grid(pairs, min(8, len(pairs))))
        with_scaling_factor(vae, 1.0 / mean.std().item())  # Rombach et al. 2022, appendix G: unit variance
        save_network(out / "vae", vae, to_config("AutoencoderKL", vae.config), torch.float32)

    run_training(run, autoencoder_task(network, data), options, keep, held)
