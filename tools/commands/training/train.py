"""Run `ldmrt train`: train an autoencoder, then a diffusion model."""

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click
import numpy as np

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.writing import write_atomically
from ldmrt.tools.console.drawing.images import grid, save_png
from ldmrt.tools.console.outputs import Output
from ldmrt.tools.console.progress import console
from ldmrt.tools.console.run_lock import locked
from ldmrt.tools.console.training import STATE, nothing_to_save, run_training
from ldmrt.tools.console.training_data import open_data
from ldmrt.tools.options.common import SIDE, Choice, Group

if TYPE_CHECKING:
    from torch import nn

    from ldmrt.model.networks.autoencoder import AutoencoderConfig

P = ParamSpec("P")
R = TypeVar("R")
SHOWN = 32  # images in a preview of 64 pixels
RATE = click.FloatRange(0, 1, min_open=True)


def _finite(ctx: click.Context, option: click.Parameter, value: float) -> float:
    """Refuse NaN, which click's ranges accept."""
    if not math.isfinite(value):
        raise click.BadParameter("not a number")
    return value


def _options(steps: int, batch: int, rate: float) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a decorator that adds the options of both trainings, with these defaults."""
    options = [
        click.option("--data", "folder", type=click.Path(path_type=Path), required=True,
                     help="Sprites built by `ldmrt data emoji`, or a folder of images with metadata.jsonl."),
        click.option("--style", "styles", multiple=True, help="Emoji styles to use; all by default."),
        click.option("--group", "groups", multiple=True, help="Emoji groups to use; all by default."),
        click.option("--layout", "layouts", multiple=True, default=["large"], show_default=True,
                     help="Emoji layouts: large, small, pair."),
        click.option("--out", type=Output(folder=True), required=True, help="Folder of the run."),
        click.option("--steps", type=click.IntRange(min=1), default=steps, show_default=True,
                     help="Batches to learn from."),
        click.option("--batch", type=click.IntRange(min=1), default=batch, show_default=True,
                     help="Images per step."),
        click.option("--learning-rate", type=RATE, default=rate, show_default=True,
                     callback=_finite, help="The highest learning rate, after the warm-up."),
        SIDE,
        click.option("--on-bad", type=Choice(["stop", "skip"]), default="stop", show_default=True,
                     help="Stop at, or skip, unreadable images and lines without a caption."),
        click.option("--on-small", type=Choice(["stop", "skip"]), default="stop", show_default=True,
                     help="Stop at, or skip, images that would be enlarged more than twice."),
        click.option("--seed", type=click.IntRange(0, 2**32), default=0, show_default=True,
                     help="Seed of weights, order and noise."),
        click.option("--device", type=Choice(["cpu", "cuda"]), default="cpu", show_default=True,
                     help="Device of the training."),
        click.option("--precision", type=Choice(["fp32", "bf16"]), default="fp32", show_default=True,
                     help="Precision of the networks; weights stay fp32."),
        click.option("--save-every", type=click.IntRange(min=1), default=500, show_default=True,
                     help="Steps between checkpoints."),
        click.option("--resume", is_flag=True, help="Continue from the last checkpoint in --out."),
        click.option("--change", multiple=True, metavar="NAME",
                     help="With --resume: use a new value of this setting, such as steps."),
    ]  # fmt: skip

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@click.group(cls=Group)
def train() -> None:
    """Train an autoencoder, then a diffusion model in its latents.

    Example: ldmrt train autoencoder --data data/emoji --style noto --out runs/ae
    """
    click.get_current_context().with_resource(nothing_to_save())


@train.command()
@_options(steps=6000, batch=8, rate=1e-3)
def autoencoder(folder: Path, styles: tuple[str, ...], groups: tuple[str, ...], layouts: tuple[str, ...], out: Path,
                steps: int, batch: int, learning_rate: float, size: int, on_bad: str, on_small: str, seed: int,
                device: str, precision: str, save_every: int, resume: bool,
                change: tuple[str, ...]) -> None:  # fmt: skip
    """Train an autoencoder, which turns images into latents and back; write OUT/vae.

    Example: ldmrt train autoencoder --data data/emoji --style noto --out runs/ae
    """
    import torch

    from ldmrt.model.checkpoint.checkpoint import save_network, with_scaling_factor
    from ldmrt.model.config import to_config
    from ldmrt.model.networks.autoencoder import Autoencoder, moments
    from ldmrt.model.training import presets
    from ldmrt.model.training.latents import to_tensor
    from ldmrt.model.training.run import Run, Settings
    from ldmrt.model.training.train import initialise, train_autoencoder

    check(out, resume, change, device, precision)
    config = replace(presets.AUTOENCODER, sample_size=size)
    check_size(size, config)
    data = open_data(
        folder, size, styles=styles, groups=groups, layouts=layouts, skip_bad=on_bad == "skip",
        skip_small=on_small == "skip", batch=batch,
    )  # fmt: skip
    torch.manual_seed(seed)
    network = Autoencoder(config)
    initialise(network)
    settings = Settings(
        steps, batch, learning_rate, seed=seed, device=device, precision=precision, skip_unreadable=on_bad == "skip"
    )
    run = Run(network, settings, {"task": "autoencoder", "size": size, "data": data.digest})
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

    run_training(run, train_autoencoder(run, data), out, save_every, resume, keep, change)


@train.command()
@_options(steps=5500, batch=32, rate=8e-4)
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
def ldm(folder: Path, styles: tuple[str, ...], groups: tuple[str, ...], layouts: tuple[str, ...], out: Path,
        steps: int, batch: int, learning_rate: float, size: int, on_bad: str, on_small: str, seed: int, device: str,
        precision: str, save_every: int, resume: bool, change: tuple[str, ...], vae_folder: Path, prediction: str,
        vocabulary: int) -> None:  # fmt: skip
    """Train a U-Net and a text encoder to denoise latents; write a whole checkpoint to OUT.

    Example: ldmrt train ldm --data data/emoji --style noto --autoencoder runs/ae --out runs/ldm
    """
    import torch

    from ldmrt.export.components.torch_pipeline import torch_pipeline
    from ldmrt.model.checkpoint.checkpoint import Checkpoint, text_encoder
    from ldmrt.model.checkpoint.load import load_autoencoder
    from ldmrt.model.networks.unet import UNet
    from ldmrt.model.training import presets
    from ldmrt.model.training.run import Run, Settings
    from ldmrt.model.training.tokenizer import train_tokenizer
    from ldmrt.model.training.train import Denoiser, initialise, train_ldm
    from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

    check(out, resume, change, device, precision)
    vae = load_autoencoder(vae_folder).to(device)
    vae.config = replace(vae.config, sample_size=size)
    check_size(size, vae.config)
    data = open_data(
        folder, size, styles=styles, groups=groups, layouts=layouts, skip_bad=on_bad == "skip",
        skip_small=on_small == "skip", batch=batch,
    )  # fmt: skip
    length = presets.TEXT_ENCODER["max_position_embeddings"]
    tokens = out / "tokenizer"
    if not resume:
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
    settings = Settings(
        steps, batch, learning_rate, seed=seed, device=device, precision=precision, skip_unreadable=on_bad == "skip"
    )
    run = Run(denoiser, settings, {
        "task": "ldm", "size": size, "data": data.digest, "prediction": prediction,
        "vocabulary": tokenizer.size, "latent_channels": channels, "autoencoder": digest_of(vae),
        "scaling_factor": vae.config.scaling_factor,
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

    run_training(run, train_ldm(run, data, vae, tokenizer, scheduler), out, save_every, resume, keep, change)


def check(out: Path, resume: bool, change: tuple[str, ...], device: str, precision: str) -> None:
    """Check the options before any work, and lock the folder until the command ends.

    Raises:
        LdmrtError: The options cannot be combined, or the device, precision or folder cannot be used.
    """
    import torch

    from ldmrt.model.training.resuming import check_changes

    if change and not resume:
        raise LdmrtError("train", "--change needs --resume", hint="--resume, or no --change")
    check_changes(change)
    if device == "cuda" and not torch.cuda.is_available():
        raise LdmrtError("train", "this PyTorch sees no CUDA device", hint="--device cpu")
    if device == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise LdmrtError("train", "this GPU has no bf16", hint="--precision fp32")
    click.get_current_context().with_resource(locked(out))
    if resume and not (out / STATE).is_file():
        raise LdmrtError("train", "nothing to resume", expected=out / STATE, hint="run without --resume")
    if not resume and (out / STATE).exists():
        raise LdmrtError("train", f"{out / STATE} exists already", hint="--resume to continue it, or another --out")


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
