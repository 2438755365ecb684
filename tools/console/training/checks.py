"""Check the options of a training before any work."""

import hashlib
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.optional import check_installed
from ldmrt.tools.console.run_lock import locked

from .options import Options

if TYPE_CHECKING:
    from torch import nn

    from ldmrt.model.networks.autoencoder import AutoencoderConfig
    from ldmrt.model.networks.vq_autoencoder import VQConfig
    from ldmrt.model.training.loop.settings import Settings

SHOWN = 32  # images in a preview of 64 pixels


def check(options: Options) -> "Settings":
    """Check the options before any work, and lock the folder until the command ends, unless nothing is written to it.

    Returns:
        The settings of the run.

    Raises:
        LdmrtError: The options cannot be combined, or the device, precision or folder cannot be used.
    """
    import torch

    from ldmrt.model.training.compiling import check_compiler
    from ldmrt.model.training.loop.states.kept import STATES, saved_states
    from ldmrt.model.training.loop.states.resuming import check_changes

    settings = options.settings()
    check_installed("train", *(name for name in ("tensorboard", "wandb") if getattr(options, name)))
    check_installed("train", *["bitsandbytes"] * (options.optimizer == "adamw8bit"))
    options.wording()  # refuses what contradicts itself
    if options.change and not options.resume:
        raise LdmrtError("train", "--change needs --resume", hint="--resume, or no --change")
    check_changes(options.change)
    if options.plan and options.resume:
        raise LdmrtError("train", "--plan reads no saved state", hint="no --resume, and another --out")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise LdmrtError("train", "this PyTorch sees no CUDA device", hint="--device cpu")
    if (settings.device, settings.precision) == ("cpu", "fp16"):
        problem, hint = "fp16 is for GPUs: a CPU computes it slowly", "--precision bf16 or fp32, or --device cuda"
        raise LdmrtError("train", problem, hint=hint)
    bf16 = (settings.device, settings.precision) == ("cuda", "bf16")
    if bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise LdmrtError("train", "this GPU has no bf16", hint="--precision fp16, or fp32")
    if settings.compile:
        check_compiler(settings.device)

    def take_folder() -> None:
        if not options.plan:  # which writes nothing
            click.get_current_context().with_resource(locked(options.out))
        states = saved_states(options.out)
        if options.resume and not states:
            raise LdmrtError("train", "nothing to resume", expected=options.out / STATES, hint="run without --resume")
        if not options.resume and states:
            hint = "--resume to continue it, or another --out"
            raise LdmrtError("train", f"{states[0]} exists already", hint=hint)

    options.once(take_folder)
    return settings


def check_size(size: int, config: "AutoencoderConfig | VQConfig") -> None:
    """Raise an `LdmrtError` if `size` is no multiple of the autoencoder's factor, or its images are not RGB."""
    if (config.in_channels, config.out_channels) != (3, 3):
        found = f"in_channels {config.in_channels}, out_channels {config.out_channels}"
        raise LdmrtError("vae", "the autoencoder is not for RGB images", expected="3 channels", found=found)
    if size % config.factor:
        expected = f"a multiple of {config.factor}, the pixels of one latent"
        raise LdmrtError("train", "unsupported --size", expected=expected, found=size)


def check_own_size(size: int, own: int) -> None:
    """Raise an `LdmrtError` if nobody asked for a size and the default is not the checkpoint's own."""
    chosen = click.get_current_context().get_parameter_source("size") is not ParameterSource.DEFAULT
    if size != own and not chosen:
        expected, hint = f"{own} pixels", f"--size {own}, or another one on purpose"
        raise LdmrtError("train", "--size is not that of the checkpoint", expected=expected, found=size, hint=hint)


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
