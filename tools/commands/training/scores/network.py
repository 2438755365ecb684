"""Measure how a bundle's network predicts the images of a folder: its loss by timestep, and the variational bound."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldmrt.model.training.data.captioned import Captioned
from ldmrt.model.training.diffusion.bound import Network, bits, bound_of, chain_of
from ldmrt.model.training.diffusion.by_timestep import LossByTimestep, even_timesteps, losses_by_timestep
from ldmrt.model.training.diffusion.objective import Objective
from ldmrt.runtime.bundle.graphs import ENCODER
from ldmrt.runtime.bundle.stages import PIXELS
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.pipeline.autoencoder.encode import encode_mean
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.tools.console.progress import watched

BATCH = 10  # images per call


@dataclass(frozen=True)
class Bound:
    """Holds the terms of the variational bound of B images, in bits per dimension.

    Attributes:
        prior: L_T, (B,).
        terms: L_0, L_1 to L_{T-1}, (B, T).
        latent: Whether they are of latents, and so of a density.
    """

    prior: Tensor
    terms: Tensor
    latent: bool

    @property
    def of_each(self) -> Tensor:
        """The bound of each image, (B,)."""
        return self.prior + self.terms.sum(dim=1)

    @property
    def standard_error(self) -> float:
        """The standard error of the mean over images."""
        return float(self.of_each.std() / len(self.prior) ** 0.5)


@dataclass(frozen=True)
class Measured:
    """Holds what was measured of a network; None of each that was not asked for."""

    loss: LossByTimestep | None = None
    bound: Bound | None = None


def check_network(pipeline: Pipeline, measures: Sequence[str]) -> None:
    """Refuse a model whose network, or whose noise schedule, a measure is not defined for.

    Raises:
        LdmrtError: The network sees what a folder of captioned images lacks, the bundle has no encoder, or the
            scheduler's noise schedule or prediction type is unsupported.
    """
    stage = pipeline.stage
    for lacks, problem in (
        (stage.takes_image, "this model needs an image to start from"),
        (stage.takes_mask, "this model fills a part of an image, and --data has no masks"),
        (stage.source("class") is not None, "this model draws classes, and --data has captions"),
        (stage.space.codec == PIXELS and stage.space.channels != 3, "the images of this model are not in colour"),
    ):
        if lacks:
            raise LdmrtError("evaluate", problem, hint="a model that is told captions, or nothing")
    if stage.space.codec != PIXELS and ENCODER not in pipeline.engines:
        hint = "ldmrt export CHECKPOINT BUNDLE, of a checkpoint with its encoder"
        raise LdmrtError("evaluate", "this bundle has no encoder, so that images have no latents", hint=hint)
    if "loss" in measures:
        Objective.of(pipeline.scheduler, "cpu")
    if "bound" in measures:
        chain_of(pipeline.scheduler)


def network_scores(
    pipeline: Pipeline, data: Captioned, count: int, measures: Sequence[str], *, seed: int = 0
) -> Measured:
    """Measure the first stage's network on images and their captions, without guidance.

    Args:
        pipeline: The model, which `check_network` has accepted.
        data: The images, of the stage's size.
        count: How many of them, 1 or more.
        measures: "loss", "bound" or both.
        seed: Which images, and the seed of their noise.

    Returns:
        The loss by timestep and the bound.
    """
    latent = pipeline.stage.space.codec != PIXELS
    parts = list(batches(count, pipeline))
    calls = 0
    if "loss" in measures:
        calls += len(even_timesteps(len(Objective.of(pipeline.scheduler, "cpu").times)))
    if "bound" in measures:
        calls += len(chain_of(pipeline.scheduler)[0].abar)
    ticks = watched(range(len(parts) * calls), len(parts) * calls, lambda _: "calls of the network")
    losses, bounds = list[LossByTimestep](), list[tuple[Tensor, Tensor]]()
    for rows in parts:
        samples = [data.draw(seed, i) for i in rows]
        x0 = states_of(pipeline, np.stack([sample.image for sample in samples]))
        network = counted(network_of(pipeline, [sample.caption for sample in samples]), ticks)
        how = {"seed": seed, "first": rows.start}
        if "loss" in measures:
            losses.append(losses_by_timestep(network, x0, pipeline.scheduler, **how))
        if "bound" in measures:
            bounds.append(bound_of(network, x0, pipeline.scheduler, levels=not latent, **how))
    next(ticks, None)  # the last call is done
    bound = None
    if bounds:
        prior, terms = (bits(torch.cat(each)) for each in zip(*bounds, strict=True))
        bound = Bound(prior, terms, latent)
    return Measured(LossByTimestep.joined(losses) if losses else None, bound)


def batches(count: int, pipeline: Pipeline) -> Iterator[range]:
    """Divide images into batches that the network takes at once."""
    most = min(BATCH, pipeline.images_at_once(requested(pipeline, [""])))
    return (range(first, min(first + most, count)) for first in range(0, count, most))


def network_of(pipeline: Pipeline, captions: Sequence[str]) -> Network:
    """Return the network of a pipeline's first stage, which is told captions, as a function of tensors."""
    model = pipeline.prepare(requested(pipeline, captions)).model

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.from_numpy(np.array(model(x.numpy(), float(t[0]))))

    return network


def requested(pipeline: Pipeline, captions: Sequence[str]) -> Request:
    """Ask for an image of each caption without guidance, as large as the first stage's."""
    size, prompted = pipeline.stage.size, pipeline.stage.prompt is not None
    return Request(
        list(captions) if prompted else None,
        num_images_per_prompt=1 if prompted else len(captions),
        guidance_scale=1.0,
        height=size,
        width=size,
    )


def counted(network: Network, ticks: Iterator[object]) -> Network:
    """Take a tick at every call of a network."""

    def call(x: Tensor, t: Tensor) -> Tensor:
        next(ticks)
        return network(x, t)

    return call


def states_of(pipeline: Pipeline, images: NDArray[np.uint8]) -> Tensor:
    """Return images (B, H, W, 3) as the network sees them without noise, (B, C, h, w): the means of their latents."""
    colours = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    space = pipeline.stage.space
    mean = encode_mean(pipeline.engines, space, pipeline.decoding, colours)
    return torch.from_numpy((mean - np.float32(space.shift_factor)) * np.float32(space.scaling_factor))
