"""Run `ldmrt train finetune`: a checkpoint's U-Net, and by choice its text encoders."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ldmrt.runtime.errors import LdmrtError
from ldmrt.tools.console.drawing.images import grid, save_png
from ldmrt.tools.console.training.checks import check, check_size, digest_of
from ldmrt.tools.console.training.options import Options, finite, training_options, weighting_options
from ldmrt.tools.console.training.run import run_training
from ldmrt.tools.options.common import Choice


def check_own_size(size: int, own: int) -> None:
    """Raise an `LdmrtError` if nobody asked for a size and the default is not the checkpoint's own."""
    chosen = click.get_current_context().get_parameter_source("size") is not ParameterSource.DEFAULT
    if size != own and not chosen:
        expected, hint = f"{own} pixels", f"--size {own}, or another one on purpose"
        raise LdmrtError("train", "--size is not that of the checkpoint", expected=expected, found=size, hint=hint)


@click.command()
@training_options(steps=1000, batch=4, rate=1e-5)
@click.option("--from", "source", required=True, metavar="CHECKPOINT",
              help="The model to start from: a folder, a single file, or OWNER/NAME on the hub.")  # fmt: skip
@click.option("--variant", help="Variant of the weight files, such as fp16; none by default.")
@click.option("--tokenizer", type=click.Path(path_type=Path),
              help="Folder with CLIP's vocabulary, which a single file lacks.")  # fmt: skip
@click.option("--prediction", type=Choice(["epsilon", "v_prediction"]),
              help="What the U-Net predicts, where the checkpoint does not say.")  # fmt: skip
@click.option("--train-text-encoder", is_flag=True, help="Train the text encoders too.")
@click.option("--caption-dropout", type=click.FloatRange(0, 1), default=0.1, show_default=True, callback=finite,
              help="Share of captions that are left out, for guidance.")  # fmt: skip
@click.option("--previews", type=click.IntRange(min=0), default=4, show_default=True,
              help="Images that are drawn of captions at each checkpoint.")  # fmt: skip
@weighting_options
def finetune(
    options: Options,
    source: str,
    variant: str | None,
    tokenizer: Path | None,
    prediction: str | None,
    train_text_encoder: bool,
    caption_dropout: float,
    previews: int,
    **weighting: Any,
) -> None:
    """Train a checkpoint further, on images of your own; write a whole checkpoint to OUT.

    Example: ldmrt train finetune --from runs/ldm --data photos --out runs/photos
    """
    from ldmrt.export.components.torch_pipeline import torch_pipeline
    from ldmrt.model.checkpoint.checkpoint import is_text_encoder
    from ldmrt.model.checkpoint.load import load
    from ldmrt.model.networks.autoencoder import Autoencoder
    from ldmrt.model.training.diffusion.objective import Objective
    from ldmrt.model.training.loop.run import Run
    from ldmrt.model.training.tasks.finetune import Conditions, Denoiser, conditioned_task, encoders_of
    from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

    if Path(source).resolve() == options.out.resolve():
        raise LdmrtError("train", "--out is the checkpoint that --from names", hint="another --out")
    settings, out, size, device = check(options), options.out, options.size, options.device
    checkpoint = load(source, variant=variant, tokenizer=tokenizer, prediction_type=prediction)
    objective = Objective.of(checkpoint.scheduler, device, **weighting)
    denoiser, vae = Denoiser.of(checkpoint, train_text_encoders=train_text_encoder), checkpoint.vae
    assert isinstance(vae, Autoencoder)  # `Denoiser.of` refuses others
    if isinstance(latents := denoiser.unet.config.sample_size, int):
        check_own_size(size, latents * vae.config.factor)
    check_size(size, vae.config)
    data, held = options.open_data(vae.config.factor * 2 ** (len(denoiser.unet.config.block_out_channels) - 1))
    model, autoencoder = digest_of(denoiser), digest_of(vae)
    run = Run(denoiser, settings, {
        "task": "finetune", "size": size, "data": data.digest, "validation": options.validation, "model": model,
        "autoencoder": autoencoder, "prediction": objective.prediction, "train_text_encoder": train_text_encoder,
        "caption_dropout": caption_dropout, **weighting, **options.shaped,
    })  # fmt: skip
    denoiser.unet.config = replace(denoiser.unet.config, sample_size=size // vae.config.factor)
    prompts = [data.caption(options.seed + 1, i) for i in range(previews)]

    def keep() -> None:
        networks = run.averaged().cpu()
        encoders = {name: one for name, one in encoders_of(networks).items() if is_text_encoder(one)}
        made = replace(checkpoint, unet=networks.unet, vae=copy.deepcopy(vae).cpu(), text_encoders=encoders)
        if prompts:
            pictures = torch_pipeline(made)(prompts, guidance_scale=5.0).pixels
            path = out / "training" / f"finetune-{run.step:06d}.png"
            save_png(path, grid(pictures, min(8, len(pictures))), {"prompts": prompts})
        made.save(out)

    tokenizers = {
        name: Tokenizer(checkpoint.tokenizers[name.replace("text_encoder", "tokenizer")])
        for name in encoders_of(denoiser)
    }
    conditions = Conditions.of(checkpoint.stage, caption_dropout)
    task = conditioned_task(denoiser, data, vae.to(device), tokenizers, objective, conditions)
    run_training(run, task, options, keep, held)
