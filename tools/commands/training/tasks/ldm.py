"""Run `ldmrt train ldm`: a U-Net and a text encoder, in latents."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ldmrt.runtime.files.writing import write_atomically
from ldmrt.tools.console.drawing.images import grid, save_png
from ldmrt.tools.console.training.checks import check, check_size, digest_of, preview
from ldmrt.tools.console.training.images.captions import classes_beside, report_long
from ldmrt.tools.console.training.latents import Latents, latent_options
from ldmrt.tools.console.training.options import (
    POSITIVE,
    Options,
    betas_options,
    finite,
    prediction_option,
    training_options,
    weighting_options,
)
from ldmrt.tools.console.training.run import run_training


@click.command()
@training_options(steps=5500, batch=32, rate=8e-4)
@click.option("--autoencoder", "vae_folder", type=click.Path(path_type=Path), required=True,
              help="A folder with vae/, such as the autoencoder's run.")  # fmt: skip
@prediction_option("flow_prediction")
@click.option("--flow-shift", type=POSITIVE, callback=finite, default=1.0, show_default=True,
              help="With flow_prediction: above 1 for more noise in the middle of the steps.")  # fmt: skip
@click.option(
    "--vocabulary",
    type=click.IntRange(600, 4096),
    default=2048,
    show_default=True,
    help="Entries of the BPE tokenizer.",
)
@click.option("--class-column", metavar="COLUMN",
              help="Column of the metadata with each image's class, which the U-Net is told too.")  # fmt: skip
@betas_options
@weighting_options
@latent_options
def ldm(
    options: Options,
    vae_folder: Path,
    prediction: str,
    flow_shift: float,
    vocabulary: int,
    class_column: str | None,
    beta_schedule: str | None,
    zero_terminal_snr: bool,
    cache: str,
    cache_folder: Path | None,
    latents: str,
    loss_mask: str | None,
    **weighting: Any,
) -> None:
    """Train a U-Net and a text encoder to denoise latents; write a whole checkpoint to OUT.

    Example: ldmrt train ldm --data data/emoji --style noto --autoencoder runs/ae --out runs/ldm
    """
    import torch

    from ldmrt.export.components.torch_pipeline import torch_pipeline
    from ldmrt.model.checkpoint.checkpoint import PIPELINE as STABLE_DIFFUSION
    from ldmrt.model.checkpoint.checkpoint import Checkpoint, text_encoder
    from ldmrt.model.checkpoint.load import load_first_stage
    from ldmrt.model.families.classes import PIPELINE
    from ldmrt.model.networks.unet import UNet
    from ldmrt.model.training.diffusion.betas import differing_betas, with_betas
    from ldmrt.model.training.diffusion.objective import Objective
    from ldmrt.model.training.loop.run import Run
    from ldmrt.model.training.tasks import presets
    from ldmrt.model.training.tasks.initialise import initialise
    from ldmrt.model.training.tasks.latent_diffusion import Denoiser, ldm_task
    from ldmrt.model.training.tasks.tokenizer import train_tokenizer
    from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

    keeping = Latents.of(cache=cache, cache_folder=cache_folder, latents=latents, loss_mask=loss_mask)
    usual = {**presets.SCHEDULER, "prediction_type": prediction}
    if prediction == "flow_prediction":
        usual = {**presets.FLOW_SCHEDULER, "flow_shift": flow_shift}
    scheduler = with_betas(usual, beta_schedule, zero_terminal_snr=zero_terminal_snr)
    settings, out, size, seed, device = check(options), options.out, options.size, options.seed, options.device
    vae = load_first_stage(vae_folder).to(device)
    vae.config = replace(vae.config, sample_size=size)
    check_size(size, vae.config)
    digest = digest_of(vae)
    data, held = options.open_data(vae.config.factor * 2 ** (len(presets.UNET.block_out_channels) - 1))
    kinds = None if class_column is None else classes_beside(options, class_column, data, held)
    kept, masks = keeping.open(options, data, vae, digest), keeping.masks(data, held)
    length = presets.TEXT_ENCODER["max_position_embeddings"]
    tokens = out / "tokenizer"

    def tokenizer_files() -> dict[str, bytes]:
        if not options.resume:
            files = train_tokenizer((data.caption(seed, i) for i in range(20_000)), entries=vocabulary, length=length)
            if options.plan:
                return files
            for name, content in files.items():
                with write_atomically(tokens / name) as file:
                    file.write(content)
        return {path.name: path.read_bytes() for path in sorted(tokens.iterdir())}

    files = options.once(tokenizer_files)
    tokenizer = Tokenizer(files)
    report_long(data, {"text_encoder": tokenizer})

    torch.manual_seed(seed)
    ids = {"vocab_size": tokenizer.size, "bos_token_id": tokenizer.start, "eos_token_id": tokenizer.end}
    channels = vae.config.latent_width
    unet = replace(
        presets.UNET, in_channels=channels, out_channels=channels, sample_size=size // vae.config.factor,
        num_class_embeds=None if kinds is None else len(kinds.names) + 1,
    )  # fmt: skip
    denoiser = Denoiser(UNet(unet), text_encoder({**presets.TEXT_ENCODER, **ids, "pad_token_id": tokenizer.pad}))
    initialise(denoiser.unet)
    run = Run(denoiser, settings, {
        "task": "ldm", "size": size, "data": data.digest, "validation": options.validation, "prediction": prediction,
        "vocabulary": vocabulary, "latent_channels": channels, "autoencoder": digest,
        "scaling_factor": vae.config.scaling_factor, "flow_shift": flow_shift, "class_column": class_column,
        "classes": None if kinds is None else kinds.digest, **weighting, **options.shaped,
        **keeping.shaped, **differing_betas(scheduler, usual),
    })  # fmt: skip
    prompts = [data.caption(seed + 1, i) for i in range(preview(size))]
    labels = None if kinds is None else [kinds.number_of(data.draw(seed + 1, i)) for i in range(len(prompts))]
    index = dict(STABLE_DIFFUSION) if kinds is None else {"_class_name": PIPELINE, "id2label": kinds.labels}

    def keep() -> None:
        networks = run.averaged()
        checkpoint = Checkpoint(
            networks.unet.cpu(), copy.deepcopy(vae).cpu(), {"text_encoder": networks.text_encoder.cpu()},
            {"tokenizer": files}, scheduler, index,
        )  # fmt: skip
        pipeline = torch_pipeline(checkpoint)
        pictures = pipeline(prompts, class_labels=labels, guidance_scale=3.0).pixels
        save_png(
            out / "training" / f"ldm-{run.step:06d}.png", grid(pictures, min(8, len(pictures))), {"prompts": prompts}
        )
        checkpoint.save(out)

    task = ldm_task(denoiser, data, vae, tokenizer, Objective.of(scheduler, device, **weighting), kept, masks, kinds)
    run_training(run, task, options, keep, held)
