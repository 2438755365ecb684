"""Guidance of a network that predicts a variance too, against the loop of diffusers' DeepFloyd IF pipelines."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from numpy.typing import NDArray

from ldmrt.runtime import plan_from_config, sample
from ldmrt.runtime.samplers.guidance import classifier_free
from ldmrt.runtime.samplers.noise.counter import noise

SEEDS, SHAPE, STEPS, SCALE = [3, 4], (4, 4, 6), 5, 5.0


def network(x: NDArray[Any], t: float) -> NDArray[np.float32]:
    """Mean and variance, above 0, of the rows with the negative prompt, then of those with the positive."""
    shift = np.where(np.arange(len(x)) < len(SEEDS), -0.4, 0.7)[:, None, None, None]
    mean = np.tanh(x * (0.5 + t / 2000) + shift)
    variance = np.exp(-((np.roll(x, 1, axis=-1) + shift) ** 2))
    return np.concatenate([mean, variance], axis=1).astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, SCALE])
@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_rows_are_those_of_deepfloyd(kind: str, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"_class_name": "DDPMScheduler", "variance_type": kind, "clip_sample": False}
    scheduler = DDPMScheduler.from_config(config)
    scheduler.set_timesteps(STEPS)
    rows = iter(range(STEPS))
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor",
        lambda shape, **_: torch.from_numpy(noise(SEEDS, next(rows) + 1, SHAPE)),
    )
    x = torch.from_numpy(noise(SEEDS, 0, SHAPE))
    for t in scheduler.timesteps.tolist():
        if scale == 1.0:
            out = torch.from_numpy(network(np.concatenate([x, x]), t)[len(x) :])
        else:
            negative, positive = torch.from_numpy(network(np.concatenate([x, x]), t)).chunk(2)
            (negative, _), (positive, variance) = negative.split(4, dim=1), positive.split(4, dim=1)
            out = torch.cat([negative + scale * (positive - negative), variance], dim=1)
        x = scheduler.step(out, t, x).prev_sample

    guidance = classifier_free(len(SEEDS), scale)

    def model(latents: NDArray[Any], t: float) -> NDArray[np.float32]:
        out = network(np.concatenate([latents, latents]), t)
        return guidance.combine(out if scale != 1.0 else out[len(latents) :], channels=4)

    plan = plan_from_config(config, STEPS)
    found = sample(plan, noise(SEEDS, 0, SHAPE), model, lambda row: noise(SEEDS, row + 1, SHAPE))
    expected = x.numpy()
    # two programs' float32 through five rows of guidance
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
