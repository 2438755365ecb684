"""The rows of picture to picture, of latent consistency models and of `denoising_start` and `denoising_end` are those
that diffusers' pipelines walk, for every scheduler.
"""

import importlib
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from numpy.typing import NDArray

from ldmrt.runtime import SCHEDULERS, LdmrtError, Plan, plan_from_config, sample
from ldmrt.runtime.samplers.noise.counter import noise
from ldmrt.runtime.samplers.registry import find_scheduler

TRAINED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CONFIG = {"_class_name": "EulerDiscreteScheduler", "steps_offset": 1, "timestep_spacing": "leading", **TRAINED}
DISTILLED = {"_class_name": "LCMScheduler", "original_inference_steps": 50, **TRAINED}
# Their timesteps are no numbers of the training's, so a share of it means nothing to them.
OTHER_TIMES = ("ipndm", "edm_euler", "edm_dpmpp_2m")
NAMES = [
    name for name in SCHEDULERS if not name.startswith(("score", "flow"))
]  # the others are for networks of their own
SHARED = [name for name in NAMES if name not in OTHER_TIMES]
SLOW = pytest.mark.slow
SEEDS, SHAPE = [3, 4], (4, 4, 6)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of diffusers


def theirs(name: str, steps: int, config: dict[str, Any] = CONFIG, **how: Any) -> Any:
    """diffusers' scheduler of an everyday name, set to so many steps."""
    line, changes = find_scheduler({}, name)
    scheduler = getattr(diffusers, line.class_name).from_config(config, **changes)
    scheduler.set_timesteps(steps, **how)
    return scheduler


def bare(pipeline: type, scheduler: Any) -> Any:
    """A pipeline of which nothing is there but the scheduler."""
    made = object.__new__(pipeline)
    object.__setattr__(made, "scheduler", scheduler)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_strength(name: str) -> None:
    steps = 11
    scheduler = theirs(name, steps)
    for strength in (0.1, 0.3, 0.5, 0.85, 1.0):
        expected, _ = bare(StableDiffusionXLImg2ImgPipeline, scheduler).get_timesteps(steps, strength, "cpu")
        found = plan_from_config(CONFIG, steps, name=name, strength=strength)
        np.testing.assert_allclose(found.t, expected.numpy(), rtol=0, atol=2e-3)  # float32 of 1000


@pytest.mark.parametrize("original", [50, 40, 100])
@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_strength_shortens_the_grid_of_a_latent_consistency_model(name: str, original: int) -> None:
    config = {**DISTILLED, "original_inference_steps": original}
    for strength in (0.1, 0.33, 0.5, 0.8, 1.0):
        for steps in (1, 2, 4, 8):
            if int(original * strength) < steps:
                with pytest.raises(LdmrtError, match="invalid number of steps"):
                    plan_from_config(config, steps, name=name, strength=strength, shortened=True)
                with pytest.raises(ValueError, match="original_steps"):
                    theirs(name, steps, config, strength=strength)
                continue
            expected = theirs(name, steps, config, strength=strength).timesteps
            found = plan_from_config(config, steps, name=name, strength=strength, shortened=True)
            np.testing.assert_array_equal(found.t, expected.numpy())


def test_four_steps_at_half_the_strength() -> None:
    assert plan_from_config(DISTILLED, 4, strength=0.5, shortened=True).t.tolist() == [499, 379, 259, 139]
    assert plan_from_config(DISTILLED, 4, strength=0.5).t.tolist() == [499, 259]  # of an adapter for another pipeline
    with pytest.raises(LdmrtError, match=r"expected a strength of at least 0\.02"):
        plan_from_config(DISTILLED, 4, strength=0.01, shortened=True)


def split(scheduler: Any, share: float) -> tuple[list[float], list[float]]:
    """The timesteps that base and refiner walk, as diffusers' pipelines cut them."""
    total, times = scheduler.config.num_train_timesteps, scheduler.timesteps
    limit = round(total - share * total)
    kept = len(list(filter(lambda ts: ts >= limit, times)))
    below, _ = bare(StableDiffusionXLImg2ImgPipeline, scheduler).get_timesteps(len(times), 0.3, "cpu", share)
    return times[:kept].tolist(), below.tolist()


@pytest.mark.parametrize("spacing", ["leading", *(pytest.param(one, marks=SLOW) for one in ("linspace", "trailing"))])
@pytest.mark.parametrize("name", SHARED)
def test_rows_of_base_and_refiner(name: str, spacing: str) -> None:
    config, steps = {**CONFIG, "timestep_spacing": spacing}, 9
    scheduler = theirs(name, steps, config)
    for share in (0.1, 0.5, 0.66, 0.8, 0.93):
        base, refiner = split(scheduler, share)
        for how, expected in ((("end", share), base), (("start", share), refiner)):
            if expected:
                found = plan_from_config(config, steps, name=name, **dict([how]))
                np.testing.assert_allclose(found.t, expected, rtol=0, atol=2e-3)


def network(x: NDArray[Any], t: float) -> NDArray[np.float32]:
    """What stands in for a U-Net."""
    return np.tanh(x * (0.5 + t / 2000) + np.roll(x, 1, axis=-1) / 3).astype(np.float32)


def drawn(monkeypatch: pytest.MonkeyPatch, scheduler: Any, plan: Plan) -> None:
    """Let a scheduler of diffusers draw what the rows of a plan draw."""
    drawing = [row for row in range(plan.rows) if plan.draws(row)]
    rows = iter([*drawing, plan.rows])  # the last step may draw noise that it does not use

    def draw(*_: Any, **__: Any) -> torch.Tensor:
        return torch.from_numpy(noise(SEEDS, plan.first + next(rows) + 1, SHAPE))

    monkeypatch.setattr(importlib.import_module(type(scheduler).__module__), "randn_tensor", draw, raising=False)


def walked(scheduler: Any, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """The loop of diffusers' pipelines."""
    for t in times:
        out = torch.from_numpy(network(scheduler.scale_model_input(x, t).numpy(), float(t)))
        x = scheduler.step(out, t, x, return_dict=False)[0]
    return x


def handed_over(name: str, steps: int, share: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The last latents of base and refiner, of diffusers and ours."""
    base = plan_from_config(CONFIG, steps, name=name, end=share)
    refiner = plan_from_config(CONFIG, steps, name=name, start=share)
    scheduler = theirs(name, steps)
    x = torch.from_numpy(noise(SEEDS, 0, SHAPE)) * scheduler.init_noise_sigma
    drawn(monkeypatch, scheduler, base)
    x = walked(scheduler, x, scheduler.timesteps[: base.rows])
    scheduler = theirs(name, steps)
    times, _ = bare(StableDiffusionXLImg2ImgPipeline, scheduler).get_timesteps(steps, 0.3, "cpu", share)
    drawn(monkeypatch, scheduler, refiner)
    expected = walked(scheduler, x, times)

    first = noise(SEEDS, 0, SHAPE) * np.float32(base.prior_scale)
    left = sample(base, first, network, lambda row: noise(SEEDS, row + 1, SHAPE))
    begun = left * np.float32(refiner.prior_scale)
    found = sample(refiner, begun, network, lambda row: noise(SEEDS, refiner.first + row + 1, SHAPE))
    return found, expected.numpy()


# diffusers draws the noise of these from a Brownian tree.
TREE = ("dpmpp_sde",)


@pytest.mark.parametrize("share", [0.62, *(pytest.param(one, marks=SLOW) for one in (0.5, 0.8))])
@pytest.mark.parametrize("name", [name for name in SHARED if name not in TREE])
def test_latents_are_handed_over(name: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a step of two calls is cut in its middle."""
    found, expected = handed_over(name, 12, share, monkeypatch)
    # two programs' float32 through two dozen rows of an erratic network
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "euler_a", "tcd"])
def test_two_halves_are_the_whole_where_nothing_is_remembered(name: str) -> None:
    """The rows of the second draw the noise that the whole plan's rows draw."""

    def run(x: NDArray[Any], **how: Any) -> NDArray[Any]:
        plan = plan_from_config(CONFIG, 12, name=name, **how)
        first = x * np.float32(plan.prior_scale)
        return sample(plan, first, network, lambda row: noise(SEEDS, plan.first + row + 1, SHAPE))

    x = noise(SEEDS, 0, SHAPE)
    whole = run(x)
    # the same sums of float32, of which a row may add the terms in another order
    np.testing.assert_allclose(run(run(x, end=0.6), start=0.6), whole, rtol=0, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("name", OTHER_TIMES)
def test_timesteps_that_are_no_shares_are_refused(name: str) -> None:
    with pytest.raises(LdmrtError, match="denoising_end leaves no step"):
        plan_from_config(CONFIG, 8, name=name, end=0.5)


def test_shares_that_leave_nothing_are_refused() -> None:
    with pytest.raises(LdmrtError, match="denoising_end leaves no step"):
        plan_from_config(CONFIG, 8, end=0.0)
    with pytest.raises(LdmrtError, match="denoising_start leaves no step"):
        plan_from_config(CONFIG, 8, start=1.0)
    whole = plan_from_config(CONFIG, 8)
    assert plan_from_config(CONFIG, 8, end=1.0).t.tolist() == whole.t.tolist()
    assert plan_from_config(CONFIG, 8, start=0.0).t.tolist() == whole.t.tolist()
