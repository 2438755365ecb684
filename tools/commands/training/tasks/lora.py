"""Run `ldmrt train lora`: low-rank pairs beside a checkpoint's layers."""

import copy
from typing import TYPE_CHECKING, Any

import click

from ldmrt.runtime.errors import LdmrtError
from ldmrt.tools.console.training.base import Base, base_options
from ldmrt.tools.console.training.checks import check
from ldmrt.tools.console.training.images.regularisation import Regularising, regularisation_options
from ldmrt.tools.console.training.options import POSITIVE, Options, finite, training_options
from ldmrt.tools.console.training.run import run_training
from ldmrt.tools.options.common import Choice

if TYPE_CHECKING:
    from ldmrt.model.checkpoint.checkpoint import Checkpoint

FILE = "pytorch_lora_weights.safetensors"  # what diffusers' `load_lora_weights` looks for in a folder


@click.command()
@training_options(steps=1000, batch=4, rate=1e-4)
@base_options
@regularisation_options
@click.option("--rank", type=click.IntRange(min=1), default=16, show_default=True,
              help="Channels between the two factors of a pair.")  # fmt: skip
@click.option("--alpha", type=POSITIVE, callback=finite,
              help="Pairs are scaled by alpha / rank; the rank by default.")  # fmt: skip
@click.option("--layers", type=Choice(["attention", "feed-forward", "projections", "convolutions"]), multiple=True,
              default=["attention"], show_default=True,
              help="Groups of layers that get a pair; may be repeated.")  # fmt: skip
@click.option("--format", "form", type=Choice(["diffusers", "kohya"]), default="diffusers", show_default=True,
              help="Names of the tensors in the file.")  # fmt: skip
@click.option("--base-precision", type=Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True,
              help="Precision of the frozen weights; bf16, or fp16 on a GPU, takes half the memory.")  # fmt: skip
def lora(
    options: Options,
    source: str,
    rank: int,
    alpha: float | None,
    layers: tuple[str, ...],
    form: str,
    base_precision: str,
    train_text_encoder: bool,
    **values: Any,
) -> None:
    """Train a LoRA of a checkpoint on images of your own; write OUT/pytorch_lora_weights.safetensors.

    Example: ldmrt train lora --from runs/ldm --data photos --rank 8 --out runs/lora
    """
    import torch

    from ldmrt.model.lora.merge import merge, read_lora
    from ldmrt.model.training.loop.averaged import with_average
    from ldmrt.model.training.loop.checkpointing import checkpoint_blocks
    from ldmrt.model.training.loop.run import Run
    from ldmrt.model.training.loop.settings import PRECISIONS
    from ldmrt.model.training.lora.pairs import LoraConfig, Pairs, layers_of
    from ldmrt.model.training.lora.writing import write
    from ldmrt.model.training.tasks.finetune import check_trainable, encoders_of

    if base_precision not in ("fp32", options.precision):
        hint = f"--precision {base_precision}, in which the layers compute, or no --base-precision"
        problem = f"--base-precision {base_precision} needs --precision {base_precision}"
        raise LdmrtError("train", problem, found=options.precision, hint=hint)
    if options.compile:
        problem = "a LoRA cannot be trained with compiled networks: torch.compile gives another loss"
        raise LdmrtError("train", problem, expected="no --compile")
    regularising, settings, out = Regularising.of(values), check(options), options.out
    config = LoraConfig(rank, alpha or float(rank), tuple(dict.fromkeys(layers)))

    def checked(checkpoint: "Checkpoint") -> "Checkpoint":
        check_trainable(checkpoint)
        encoders = checkpoint.text_encoders if train_text_encoder else {}
        layers_of({"unet": checkpoint.unet, **encoders}, config)  # refuses what cannot be, before images are read
        return checkpoint

    base = Base.open(options, source, train_text_encoder=False, adapt=checked, regularising=regularising, **values)
    denoiser = base.denoiser.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    denoiser.to(PRECISIONS[base_precision] or torch.float32)
    networks = {"unet": denoiser.unet, **(encoders_of(denoiser) if train_text_encoder else {})}
    torch.manual_seed(options.seed)
    pairs = Pairs(networks, config)
    if settings.checkpointing:
        checkpoint_blocks(denoiser)
    run = Run(pairs, settings, {
        **base.about, "task": "lora", "rank": rank, "alpha": config.alpha, "layers": ", ".join(config.layers),
        "base_precision": None if base_precision == "fp32" else base_precision,
        "train_text_encoder": train_text_encoder,
    })  # fmt: skip

    def keep() -> None:
        with with_average(run):
            write(pairs, out / FILE, form)
        if base.prompts:
            with pairs.detached(networks):
                made = base.checkpoint_of(copy.deepcopy(denoiser).cpu().float())
            merge(made.networks, [(read_lora(out / FILE), 1.0)])  # as `export --lora` does
            base.preview(made, out / "training" / f"lora-{run.step:06d}.png")

    run_training(run, base.task(), options, keep, base.held)
