"""Run `ldmrt train`: train an autoencoder, a diffusion model in its latents, and an upscaler."""

import copy
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.writing import write_atomically
from ldmrt.tools.console.drawing.images import grid, save_png
from ldmrt.tools.console.progress import console
from ldmrt.tools.console.run_lock import locked
from ldmrt.tools.console.training.log import show_log
from ldmrt.tools.console.training.options import Options, finite, training_options
from ldmrt.tools.console.training.recipe import Trainings
from ldmrt.tools.console.training.run import STATE, nothing_to_save, run_training
from ldmrt.tools.options.common import Choice

if TYPE_CHECKING:
    from torch import nn

    from ldmrt.model.networks.autoencoder import AutoencoderConfig
    from ldmrt.model.training.settings import Settings

SHOWN = 32  # images in a preview of 64 pixels
POSITIVE = click.FloatRange(0, 1000, min_open=True)


def _show(ctx: click.Context, option: click.Parameter, out: Path | None) -> None:
    """Print the log of a run and end."""
    if out is not None:
        show_log(out)
        ctx.exit()


@click.group(cls=Trainings)
@click.option("--show", type=click.Path(path_type=Path), is_eager=True, expose_value=False, callback=_show,
              metavar="OUT", help="Print the log of the run in OUT: a table, and the curve of its loss.")  # fmt: skip
def train() -> None:
    """Train an autoencoder, then a diffusion model in its latents, or an upscaler in pixels.

    A recipe, such as the recipe.toml of an earlier run, may take the place of a command: ldmrt train RECIPE.toml
    [--set KEY=VALUE]... --out OUT

    Example: ldmrt train autoencoder --data data/emoji --style noto --out runs/ae
    """
    click.get_current_context().with_resource(nothing_to_save())


@train.command()
@training_options(steps=6000, batch=8, rate=1e-3)
def autoencoder(options: Options) -> None:
    """Train an autoencoder, which turns images into latents and back; write OUT/vae.

    Example: ldmrt train autoencoder --data data/emoji --style noto --out runs/ae
    """
    import torch

    from ldmrt.model.checkpoint.checkpoint import save_network, with_scaling_factor
    from ldmrt.model.config import to_config
    from ldmrt.model.networks.autoencoder import Autoencoder, moments
    from ldmrt.model.training.latents import to_tensor
    from ldmrt.model.training.run import Run
    from ldmrt.model.training.tasks import presets
    from ldmrt.model.training.tasks.autoencoder import autoencoder_task
    from ldmrt.model.training.tasks.initialise import initialise

    settings, out, size, seed, device = check(options), options.out, options.size, options.seed, options.device
    config = replace(presets.AUTOENCODER, sample_size=size)
    check_size(size, config)
    data, held = options.open_data()
    torch.manual_seed(seed)
    network = Autoencoder(config)
    initialise(network)
    run = Run(
        network, settings, {"task": "autoencoder", "size": size, "data": data.digest, "validation": options.validation}
    )
    half = preview(size)
    shown = np.stack([data.draw(seed + 1, i).image for i in range(2 * half)])

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


@train.command()
@training_options(steps=5500, batch=32, rate=8e-4)
@click.option("--autoencoder", "vae_folder", type=click.Path(path_type=Path), required=True,
              help="A folder with vae/, such as the autoencoder's run.")  # fmt: skip
@click.option("--prediction", type=Choice(["epsilon", "v_prediction"]), default="epsilon", show_default=True,
              help="What the U-Net learns to predict.")  # fmt: skip
@click.option(
    "--vocabulary",
    type=click.IntRange(600, 4096),
    default=2048,
    show_default=True,
    help="Entries of the BPE tokenizer.",
)
@click.option(
    "--snr-gamma",
    type=POSITIVE,
    callback=finite,
    help="Largest signal-to-noise ratio by which a timestep counts (min-SNR); all count alike by default.",
)
@click.option(
    "--offset-noise",
    type=POSITIVE,
    callback=finite,
    help="Standard deviation of a number that is added to all noise of a channel; none by default.",
)
@click.option("--input-perturbation", type=POSITIVE, callback=finite,
              help="Standard deviation of noise on the input that is not predicted; none by default.")  # fmt: skip
def ldm(
    options: Options,
    vae_folder: Path,
    prediction: str,
    vocabulary: int,
    **weighting: float | None,
) -> None:
    """Train a U-Net and a text encoder to denoise latents; write a whole checkpoint to OUT.

    Example: ldmrt train ldm --data data/emoji --style noto --autoencoder runs/ae --out runs/ldm
    """
    import torch

    from ldmrt.export.components.torch_pipeline import torch_pipeline
    from ldmrt.model.checkpoint.checkpoint import Checkpoint, text_encoder
    from ldmrt.model.checkpoint.load import load_autoencoder
    from ldmrt.model.networks.unet import UNet
    from ldmrt.model.training.objective import Objective
    from ldmrt.model.training.run import Run
    from ldmrt.model.training.tasks import presets
    from ldmrt.model.training.tasks.initialise import initialise
    from ldmrt.model.training.tasks.latent_diffusion import Denoiser, ldm_task
    from ldmrt.model.training.tasks.tokenizer import train_tokenizer
    from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

    settings, out, size, seed, device = check(options), options.out, options.size, options.seed, options.device
    vae = load_autoencoder(vae_folder).to(device)
    vae.config = replace(vae.config, sample_size=size)
    check_size(size, vae.config)
    data, held = options.open_data()
    length = presets.TEXT_ENCODER["max_position_embeddings"]
    tokens = out / "tokenizer"
    if not options.resume:
        files = train_tokenizer((data.caption(seed, i) for i in range(20_000)), entries=vocabulary, length=length)
        for name, content in files.items():
            with write_atomically(tokens / name) as file:
                file.write(content)
    files = {path.name: path.read_bytes() for path in sorted(tokens.iterdir())}
    tokenizer = Tokenizer(files)
    scheduler = {**presets.SCHEDULER, "prediction_type": prediction}

    torch.manual_seed(seed)
    ids = {"vocab_size": tokenizer.size, "bos_token_id": tokenizer.start, "eos_token_id": tokenizer.end}
    channels = vae.config.latent_channels
    unet = replace(presets.UNET, in_channels=channels, out_channels=channels, sample_size=size // vae.config.factor)
    denoiser = Denoiser(UNet(unet), text_encoder({**presets.TEXT_ENCODER, **ids, "pad_token_id": tokenizer.pad}))
    initialise(denoiser.unet)
    run = Run(denoiser, settings, {
        "task": "ldm", "size": size, "data": data.digest, "validation": options.validation, "prediction": prediction,
        "vocabulary": tokenizer.size, "latent_channels": channels, "autoencoder": digest_of(vae),
        "scaling_factor": vae.config.scaling_factor, **weighting,
    })  # fmt: skip
    prompts = [data.caption(seed + 1, i) for i in range(preview(size))]

    def keep() -> None:
        networks = run.averaged()
        checkpoint = Checkpoint(
            networks.unet.cpu(), copy.deepcopy(vae).cpu(), {"text_encoder": networks.text_encoder.cpu()},
            {"tokenizer": files}, scheduler,
        )  # fmt: skip
        pipeline = torch_pipeline(checkpoint)
        pictures = pipeline(prompts, guidance_scale=3.0).pixels
        save_png(
            out / "training" / f"ldm-{run.step:06d}.png", grid(pictures, min(8, len(pictures))), {"prompts": prompts}
        )
        checkpoint.save(out)

    task = ldm_task(denoiser, data, vae, tokenizer, Objective.of(scheduler, device, **weighting))
    run_training(run, task, options, keep, held)


@train.command()
@training_options(steps=2500, batch=16, rate=6e-4)
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
    from ldmrt.model.training.latents import to_tensor
    from ldmrt.model.training.objective import Objective
    from ldmrt.model.training.run import Run
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
        "autoencoder": None if vae is None else digest_of(vae),
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


def check(options: Options) -> "Settings":
    """Check the options before any work, and lock the folder until the command ends.

    Returns:
        The settings of the run.

    Raises:
        LdmrtError: The options cannot be combined, or the device, precision or folder cannot be used.
    """
    import torch

    from ldmrt.model.training.resuming import check_changes

    settings, state = options.settings(), options.out / STATE
    if options.change and not options.resume:
        raise LdmrtError("train", "--change needs --resume", hint="--resume, or no --change")
    check_changes(options.change)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise LdmrtError("train", "this PyTorch sees no CUDA device", hint="--device cpu")
    bf16 = (settings.device, settings.precision) == ("cuda", "bf16")
    if bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise LdmrtError("train", "this GPU has no bf16", hint="--precision fp32")
    click.get_current_context().with_resource(locked(options.out))
    if options.resume and not state.is_file():
        raise LdmrtError("train", "nothing to resume", expected=state, hint="run without --resume")
    if not options.resume and state.exists():
        raise LdmrtError("train", f"{state} exists already", hint="--resume to continue it, or another --out")
    return settings


def check_size(size: int, config: "AutoencoderConfig") -> None:
    """Raise an `LdmrtError` if `size` is no multiple of the autoencoder's factor, or its images are not RGB."""
    if (config.in_channels, config.out_channels) != (3, 3):
        found = f"in_channels {config.in_channels}, out_channels {config.out_channels}"
        raise LdmrtError("vae", "the autoencoder is not for RGB images", expected="3 channels", found=found)
    if size % config.factor:
        expected = f"a multiple of {config.factor}, the pixels of one latent"
        raise LdmrtError("train", "unsupported --size", expected=expected, found=size)


def preview(size: int) -> int:
    """Return how many images of this size a preview shows: 32 of 64 pixels, fewer of larger ones, at least 4."""
    return max(4, min(SHOWN, SHOWN * 64**2 // size**2))


def digest_of(network: "nn.Module") -> str:
    """Return the first 16 hexadecimal digits of the weights' SHA-256."""
    import torch

    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
