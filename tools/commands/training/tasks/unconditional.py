"""Run `ldmrt train unconditional`: a U-Net in pixels."""

from dataclasses import replace
from typing import Any

import click

from ldmrt.runtime.errors import LdmrtError
from ldmrt.tools.console.drawing.images import grid, save_png
from ldmrt.tools.console.training.checks import check
from ldmrt.tools.console.training.options import (
    Options,
    betas_options,
    prediction_option,
    training_options,
    weighting_options,
)
from ldmrt.tools.console.training.run import run_training
from ldmrt.tools.options.common import Choice

PREVIEW_STEPS = 50  # of the sampler
PREVIEW = 8  # images


@click.command()
@training_options(steps=20000, batch=32, rate=2e-4, captions=False)
@prediction_option("sample")
@click.option("--variance", type=Choice(["fixed_small", "fixed_large", "learned_range"]), default="fixed_small",
              show_default=True,
              help="Variance of the sampler's noise; learned_range is learned too, by the bound.")  # fmt: skip
@betas_options
@weighting_options
def unconditional(
    options: Options,
    prediction: str,
    variance: str,
    beta_schedule: str | None,
    zero_terminal_snr: bool,
    **weighting: Any,
) -> None:
    """Train an unconditional U-Net in pixels (DDPM); write a whole checkpoint to OUT.

    Example: ldmrt train unconditional --data photos --size 32 --out runs/ddpm
    """
    import torch

    from ldmrt.export.components.torch_pipeline import torch_pipeline
    from ldmrt.model.checkpoint.checkpoint import Checkpoint
    from ldmrt.model.networks.plain_unet import PlainUNet
    from ldmrt.model.training.diffusion.betas import differing_betas, with_betas
    from ldmrt.model.training.diffusion.bound import Chain
    from ldmrt.model.training.diffusion.objective import Objective
    from ldmrt.model.training.loop.run import Run
    from ldmrt.model.training.tasks import presets
    from ldmrt.model.training.tasks.initialise import initialise
    from ldmrt.model.training.tasks.unconditional import unconditional_task

    usual = {**presets.UNCONDITIONAL_SCHEDULER, "prediction_type": prediction, "variance_type": variance}
    scheduler = with_betas(usual, beta_schedule, zero_terminal_snr=zero_terminal_snr)
    settings, out, size, seed, device = check(options), options.out, options.size, options.seed, options.device
    learned = variance == "learned_range"
    config = replace(presets.UNCONDITIONAL, sample_size=size, out_channels=6 if learned else 3)
    if size % (unit := 2 ** (len(config.block_out_channels) - 1)):
        raise LdmrtError("train", "unsupported --size", expected=f"a multiple of {unit}", found=size)
    data, held = options.open_data()
    torch.manual_seed(seed)
    network = PlainUNet(config)
    initialise(network)
    run = Run(network, settings, {
        "task": "unconditional", "size": size, "data": data.digest, "validation": options.validation,
        "prediction": prediction, "variance": variance, **weighting, **options.shaped,
        **differing_betas(scheduler, usual),
    })  # fmt: skip

    def keep() -> None:
        checkpoint = Checkpoint(run.averaged().cpu(), None, {}, {}, scheduler, {"_class_name": "DDPMPipeline"})
        made = torch_pipeline(checkpoint)(num_inference_steps=PREVIEW_STEPS, num_images_per_prompt=PREVIEW, seed=0)
        save_png(out / "training" / f"unconditional-{run.step:06d}.png", grid(made.pixels, 8))
        checkpoint.save(out)

    chain = Chain.of(scheduler, device) if learned else None
    task = unconditional_task(network, data, Objective.of(scheduler, device, **weighting), chain)
    run_training(run, task, options, keep, held)
