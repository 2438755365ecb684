"""Measure a training step of the demo U-Net beside the same step written with diffusers, by turns in one process.

    python -m ldmrt.tools.benchmarks.speed.training --json out.json

All contestants have the same first weights, images, optimizer, clipping and average of the weights. diffusers runs
twice: with latents that are computed before, and as its example `train_text_to_image.py` is, which encodes in every
step. The CPU time of all threads is measured, which a busy machine changes less than the time that passes.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from ldmrt.tools.console.outputs import Output
from ldmrt.tools.console.script import run_script

if TYPE_CHECKING:
    from ldmrt.model.training.data.captioned import Sample

THREADS, IMAGES, SIDE, DECAY = 2, 64, 64, 0.999
GOALS = {"cached": 1.0, "encoding": 1.2}  # diffusers' time relative to ldmrt's, at least


class Stream:
    """Streams random images in memory, in turn; only the steps are measured, not the decoding of files."""

    def __init__(self) -> None:
        """Draw the images."""
        self.images = np.random.default_rng(0).integers(0, 256, (IMAGES, SIDE, SIDE, 3), np.uint8)

    def draw(self, seed: int, index: int) -> "Sample":
        """Return a sample of the stream."""
        from ldmrt.model.training.data.captioned import Sample

        return Sample(self.images[index % IMAGES], self.caption(seed, index), (index % IMAGES,))

    def caption(self, seed: int, index: int) -> str:
        """Return the caption of a sample."""
        return f"image {index % IMAGES} of {IMAGES}"


def contestants(batch: int) -> dict[str, Iterator[float]]:
    """Return endless trainings by name, which yield the loss of each step."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from ldmrt.model.checkpoint.checkpoint import text_encoder
    from ldmrt.model.config import to_config
    from ldmrt.model.networks.autoencoder import Autoencoder
    from ldmrt.model.networks.unet import UNet
    from ldmrt.model.training.diffusion.objective import Objective
    from ldmrt.model.training.loop.run import Run
    from ldmrt.model.training.loop.settings import Settings
    from ldmrt.model.training.tasks import presets
    from ldmrt.model.training.tasks.latent_diffusion import Denoiser, ldm_task

    torch.manual_seed(0)
    length, entries = presets.TEXT_ENCODER["max_position_embeddings"], 1000
    words = {**presets.TEXT_ENCODER, "vocab_size": entries, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    stream, vae, unet, text = Stream(), Autoencoder(presets.AUTOENCODER).eval(), UNet(presets.UNET), text_encoder(words)

    def tokenize(texts: list[str]) -> np.ndarray:
        numbers = np.array([[sum(map(ord, one)) * 7919 % entries] for one in texts])
        return np.concatenate([np.zeros_like(numbers), numbers, np.ones((len(texts), length - 2), np.int64)], axis=1)

    def theirs(encoding: bool) -> Iterator[float]:
        networks = UNet2DConditionModel.from_config(to_config("UNet2DConditionModel", presets.UNET))
        networks.load_state_dict(unet.state_dict())
        encoder = CLIPTextModel(CLIPTextConfig(**words))
        encoder.load_state_dict(text.state_dict())
        coder = AutoencoderKL.from_config(to_config("AutoencoderKL", presets.AUTOENCODER)).eval().requires_grad_(False)
        coder.load_state_dict(vae.state_dict())
        return diffusers_loop(networks, encoder, coder, stream, tokenize, batch, encoding)

    def ours() -> Iterator[float]:
        run = Run(Denoiser(unet, text), Settings(10**9, batch, 1e-4, warmup=0, schedule="constant", ema=DECAY))
        task = ldm_task(run.module, stream, vae, tokenize, Objective.of(presets.SCHEDULER, "cpu"))
        return (progress.loss for progress in run.optimise(task))

    both = {name: theirs(name == "encoding") for name in GOALS}  # they copy the weights before a step changes them
    return {"ldmrt": ours(), **both}


def diffusers_loop(unet, encoder, vae, stream, tokenize, batch, encoding):  # type: ignore[no-untyped-def]
    """Train by the lines of diffusers' `train_text_to_image.py`, and yield the loss of each step.

    Args:
        unet: A UNet2DConditionModel in training.
        encoder: A CLIPTextModel, which is trained too.
        vae: An AutoencoderKL.
        stream: The images.
        tokenize: Turns captions into ids.
        batch: Images a step.
        encoding: Whether images are encoded in every step; otherwise the moments are computed before the first.
    """
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from diffusers.training_utils import EMAModel

    from ldmrt.model.training.latents import to_tensor
    from ldmrt.model.training.tasks import presets

    unet.train(), encoder.train()
    parameters = [*unet.parameters(), *encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    average = EMAModel(parameters, decay=DECAY)
    scheduler = DDPMScheduler.from_config({**presets.SCHEDULER, "_class_name": "DDPMScheduler"})
    images = torch.cat([to_tensor([image], "cpu") for image in stream.images])
    ids = torch.from_numpy(tokenize([stream.caption(0, i) for i in range(IMAGES)]))
    with torch.no_grad():
        moments = None if encoding else torch.cat([vae.encode(one[None]).latent_dist.parameters for one in images])
    step = 0
    while True:
        places = [(step * batch + i) % IMAGES for i in range(batch)]
        with torch.no_grad():
            seen = (
                vae.encode(images[places]).latent_dist
                if moments is None
                else DiagonalGaussianDistribution(moments[places])
            )
        latents = seen.sample() * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (batch,))
        noisy = scheduler.add_noise(latents, noise, timesteps)
        context = encoder(ids[places], return_dict=False)[0]
        loss = F.mse_loss(unet(noisy, timesteps, context, return_dict=False)[0].float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(parameters)
        step += 1
        yield loss.item()


@click.command()
@click.option("--batch", type=click.IntRange(min=1, max=IMAGES), default=32, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=4, show_default=True, help="Of each, in a round.")
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--json", "out", type=Output(), help="Write the numbers here too.")
def bench(batch: int, steps: int, rounds: int, out: Path | None) -> None:
    """Time training steps of the demo U-Net, its latents cached, beside diffusers' with and without cached latents.

    Example: python -m ldmrt.tools.benchmarks.speed.training --rounds 7
    """
    import torch

    from ldmrt.runtime.files.writing import write_atomically
    from ldmrt.runtime.host import processor

    torch.set_num_threads(THREADS)
    runs = contestants(batch)
    for run in runs.values():
        for _ in range(-(-IMAGES // batch) + 1):  # all latents are in the cache, and the average has begun
            next(run)
    took: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in sorted(runs, key=list(runs).index, reverse=bool(turn % 2)):
            begin = time.process_time()
            for _ in range(steps):
                next(runs[name])
            took[name].append((time.process_time() - begin) / steps)
    ratios = {name: [a / b for a, b in zip(took[name], took["ldmrt"], strict=True)] for name in GOALS}
    about = {
        **{name: version(name) for name in ("ldmrt", "torch", "diffusers", "transformers")},
        "python": platform.python_version(),
        "cpu": processor(),
        "threads": THREADS,
        "load": " ".join(f"{one:.1f}" for one in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown",
        "batch": batch,
        "steps": steps,
        "rounds": rounds,
    }
    click.echo(f"ldmrt: {statistics.median(took['ldmrt']):.3f} s of CPU time a step")
    for name, goal in GOALS.items():
        found = ratios[name]
        median = statistics.median(found)
        verdict = "reached" if median >= goal else "missed"
        click.echo(
            f"diffusers, {name}: {median:.2f} of it ({min(found):.2f} to {max(found):.2f}); {goal:.2f} {verdict}"
        )
    click.echo(", ".join(f"{key} {value}" for key, value in about.items()))
    if out is not None:
        medians = {name: statistics.median(found) for name, found in ratios.items()}
        content = {"about": about, "seconds": took, "ratios": ratios, "medians": medians, "goals": GOALS}
        with write_atomically(out) as file:
            file.write(json.dumps(content, indent=2).encode())


def main() -> None:
    """Run the benchmark with `THREADS` threads in every library."""
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", str(THREADS))
    run_script(bench)


if __name__ == "__main__":
    main()
