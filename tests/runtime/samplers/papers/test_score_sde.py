"""Score SDEs (Song et al. 2021): rows and trajectories against diffusers.

diffusers' own classes compute here, with their noise levels as float64 where a difference is to be one of formulas.
"""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ldmrt.runtime import InvalidRequest, LdmrtError, Plan, Request, plan_from_config, sample, steps
from ldmrt.runtime.pipeline.denoising.fused_step import can_fuse
from ldmrt.runtime.samplers.config import resolve
from ldmrt.runtime.samplers.guidance import guide
from ldmrt.runtime.samplers.noise.counter import FIRST, noise
from ldmrt.runtime.samplers.papers.score_sde import ve_grid

from ....support.exact_diffusers import scheduler_class
from ....support.plans import Array, normal64

VE, VP = {"_class_name": "ScoreSdeVeScheduler"}, {"_class_name": "ScoreSdeVpScheduler"}
SHAPE = (2, 3, 4, 5)
VE_CONFIGS: list[dict[str, Any]] = [
    {},
    {"sigma_min": 0.05, "sigma_max": 9.0, "sampling_eps": 0.1},
    {"num_train_timesteps": 500, "snr": 0.3},
]
VP_CONFIGS: list[dict[str, Any]] = [{}, {"beta_min": 0.3, "beta_max": 10.0, "sampling_eps": 0.1}]


def theirs(config: dict[str, Any], count: int, monkeypatch: pytest.MonkeyPatch, dtype: str = "float64") -> Any:
    """diffusers' scheduler for so many steps, which draws the noise in its attribute `draw`, of float64 levels."""
    import torch

    made = scheduler_class(config["_class_name"], float64=False)(**{k: v for k, v in config.items() if k[0] != "_"})
    made.set_timesteps(count)
    if hasattr(made, "set_sigmas"):
        made.set_sigmas(count)
    if dtype == "float64" and config["_class_name"] == "ScoreSdeVpScheduler":
        made.timesteps = torch.linspace(1, made.config.sampling_eps, count, dtype=torch.float64)
    elif dtype == "float64":  # where a time is in the list of levels is still found in float32
        low, high = math.log(made.config.sigma_min), math.log(made.config.sigma_max)
        made.discrete_sigmas = torch.exp(torch.linspace(low, high, count, dtype=torch.float64))
    monkeypatch.setattr(f"{type(made).__module__}.randn_tensor", lambda *_, **__: made.draw)
    return made


def row_of(plan: Plan, row: int, x: Array, m: Array, z: Array) -> Array:
    """The latents after one row, of a plan that has no more before it."""
    from dataclasses import replace

    parts = {name: getattr(plan, name)[row : row + 1] for name in ("t", "alpha", "sigma", "read", "table")}
    langevin = plan.langevin if plan.langevin is not None and plan.langevin.corrects(row) else None
    return sample(replace(plan, **parts, langevin=langevin), x, lambda x, t: m, lambda row: z)


def off(found: Array, expected: Any) -> float:
    """The largest difference, relative to the largest number."""
    return float(np.abs(found - expected.numpy()).max() / np.abs(expected.numpy()).max())


ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24}


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("config", VE_CONFIGS, ids=str)
@pytest.mark.parametrize("count", [1, 2, 7, 50, 400])
def test_predictor_is_that_of_diffusers(
    count: int, config: dict[str, Any], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    config = {**VE, **config, "correct_steps": 0}
    plan, made = plan_from_config(config, count), theirs(config, count, monkeypatch, dtype)
    # The power is of a time that has its last bit from float32: 6e-8 of it, times its logarithm, and its own roundings
    np.testing.assert_allclose(plan.t, made.sigmas.numpy(), rtol=2.0**-24 * (12 + 12))
    x, m, z = (normal64(seed, SHAPE).astype(dtype) for seed in range(3))
    # A level is a power of e, of an exponent up to log(1348) = 7 with two roundings, squared, on either side: 60. What
    # lies between two levels has the roundings of both, relative to their difference, a small part of either.
    ratio = math.log(made.config.sigma_max / made.config.sigma_min) / max(count - 1, 1)
    near = ROUNDING[dtype] * (20 + 60 / (1 - math.exp(-2 * ratio)))
    for row in sorted({*range(min(count, 20)), count - 1}):
        made.draw = torch.from_numpy(z)
        out = made.step_pred(torch.from_numpy(m), made.timesteps[row], torch.from_numpy(x))
        expected = out.prev_sample if row < count - 1 else out.prev_sample_mean  # the pipeline takes the last mean
        assert off(row_of(plan, row, x, m, z), expected) <= near, row


@pytest.mark.oracle
@pytest.mark.parametrize("eps", [1e-5, 0.01, 0.1])
def test_level_of_every_time_is_the_one_diffusers_cuts_it_to(eps: float) -> None:
    """Where a rounding decides: 1997 or 1996.9999 of 1999."""
    import torch

    c, apart = resolve({"sampling_eps": eps}, "ScoreSdeVeScheduler"), 0
    for count in (*range(1, 120), 333, 500, 1000, 1999, 2000):
        place = (torch.linspace(1, eps, count) * torch.ones(1) * (count - 1)).long().numpy()
        level = 0.01 * 134800.0 ** np.linspace(0, 1, count)
        np.testing.assert_allclose([node.sigma for node, _ in ve_grid(c, count).steps], level[place], rtol=1e-13)
        apart += int((place != np.trunc(np.linspace(1, eps, count) * (count - 1))).sum())
    assert (apart > 0) == (eps > 1e-5)  # else the rounding of float32 would not matter


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("snr", [0.15, 0.4])
def test_corrector_by_the_batch_is_that_of_diffusers(snr: float, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    config = {**VE, "snr": snr}
    plan, made = plan_from_config({**config, "step_by": "batch"}, 4), theirs(config, 4, monkeypatch, dtype)
    alone = plan_from_config(config, 4)
    x, m, z = (normal64(seed, SHAPE).astype(dtype) for seed in range(3))
    m[1] *= 20  # another norm than that of the first image
    near = {"float64": 2.0**-24, "float32": 1e-6}[dtype]  # diffusers rounds the step size to float32 in either
    for row in (0, 2, 6):
        made.draw = torch.from_numpy(z)
        expected = made.step_correct(torch.from_numpy(m), torch.from_numpy(x)).prev_sample
        assert off(row_of(plan, row, x, m, z), expected) <= near
        each = row_of(alone, row, x, m, z)
        assert off(each, expected) > 0.1
        for image in range(len(x)):  # by image is by batch, of one
            made.draw = torch.from_numpy(z[image : image + 1])
            args = (torch.from_numpy(one[image : image + 1]) for one in (m, x))
            assert off(each[image : image + 1], made.step_correct(*args).prev_sample) <= near


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("config", VP_CONFIGS, ids=str)
@pytest.mark.parametrize("count", [1, 2, 7, 50, 400])
def test_variance_preserving_rows_are_those_of_diffusers(
    count: int, config: dict[str, Any], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    config = {**VP, **config}
    plan, made = plan_from_config(config, count), theirs(config, count, monkeypatch, dtype)
    x, m, z = (normal64(seed, SHAPE).astype(dtype) for seed in range(3))
    for row in sorted({*range(min(count, 20)), count - 1}):
        # Roundings of an exponent up to 10; and those of diffusers' 1 - alpha^2, which is small at the end, under m
        near = ROUNDING[dtype] * (50 + 1 / plan.sigma[row] ** 2)
        made.draw = torch.from_numpy(z)
        out, mean = made.step_pred(torch.from_numpy(m), torch.from_numpy(x), made.timesteps[row])
        assert off(row_of(plan, row, x, m, z), out if row < count - 1 else mean) <= near, row
    np.testing.assert_allclose(plan.t, np.linspace(1, plan.t[-1] / 1999, count) * 1999 if count > 1 else [1999.0])


@pytest.fixture(scope="module")
def network() -> Any:
    """A small random network of diffusers that is told the noise level, as ScoreSdeVePipeline's are."""
    import torch
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    made = UNet2DModel(
        sample_size=8,
        time_embedding_type="fourier",
        freq_shift=0,
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        block_out_channels=(32, 32),
        layers_per_block=1,
        mid_block_scale_factor=math.sqrt(2),
        norm_eps=1e-6,
    )
    return made.eval()


def drawn_by_diffusers(network: Any, config: dict[str, Any], count: int, seeds: list[int], patch: Any) -> Array:
    """The images of ScoreSdeVePipeline before they are cut off at 0 and 1, of our noise."""
    import torch
    from diffusers import ScoreSdeVePipeline

    scheduler = scheduler_class("ScoreSdeVeScheduler", float64=False)(
        **{key: value for key, value in config.items() if key not in ("_class_name", "step_by")}
    )
    streams, last = iter(range(10**6)), []

    def draw(shape: tuple[int, ...], **_: Any) -> Any:
        return torch.from_numpy(noise(seeds, next(streams), tuple(shape)[1:]))

    predict = scheduler.step_pred

    def kept(*args: Any, **more: Any) -> Any:
        last.append(predict(*args, **more))
        return last[-1]

    patch.setattr(f"{ScoreSdeVePipeline.__module__}.randn_tensor", draw)
    patch.setattr(f"{type(scheduler).__module__}.randn_tensor", draw)
    patch.setattr(scheduler, "step_pred", kept)
    pipeline = ScoreSdeVePipeline(network, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(batch_size=len(seeds), num_inference_steps=count, output_type="np")
    images: NDArray[np.float32] = last[-1].prev_sample_mean.numpy()
    return images


def drawn(network: Any, config: dict[str, Any], count: int, seeds: list[int]) -> Array:
    import torch

    def model(x: Array, t: float) -> Array:
        with torch.no_grad():
            out: Array = network(torch.from_numpy(x.copy()), torch.full((len(x),), t)).sample.numpy()
        return out

    plan = plan_from_config(config, count)
    first = noise(seeds, FIRST, (3, 8, 8)) * np.float32(plan.prior_scale)
    return sample(plan, first, model, lambda row: noise(seeds, row + 1, (3, 8, 8)))


# Rounding of float32 through 5 steps of 2 or 3 evaluations each: a network that is off by 1e-6, as elsewhere 2e-4 of
# the largest number. A noise that is drawn in another order or a level that is missed is off by more than 0.1.
ALIKE = 2e-4


@pytest.mark.oracle
@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize(
    "config",
    [{}, {"correct_steps": 2, "sigma_max": 50.0}, {"correct_steps": 0, "sigma_max": 50.0}, {"snr": 0.3}],
    ids=str,
)
def test_trajectory_is_that_of_diffusers_pipeline(
    config: dict[str, Any], count: int, network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**VE, **config}
    expected = drawn_by_diffusers(network, config, count, [3, 4], monkeypatch)
    together = drawn(network, {**config, "step_by": "batch"}, count, [3, 4])
    assert np.abs(together - expected).max() <= ALIKE * np.abs(expected).max()
    for image, seed in enumerate((3, 4)):  # by image: what diffusers draws of each seed alone
        alone = drawn_by_diffusers(network, config, count, [seed], monkeypatch)
        own = drawn(network, config, count, [3, 4])[image : image + 1]
        assert np.abs(own - alone).max() <= ALIKE * np.abs(alone).max()


# What a plan says of itself


def score(v: float) -> Any:
    return lambda x, t: -x / v


def test_preview_of_a_correction_is_what_the_network_said() -> None:
    plan = plan_from_config({**VE, "sigma_max": 9.0}, 4)
    x = normal64(0) * plan.prior_scale
    for state in steps(plan, x, score(2.0), normal64):
        expected = x - plan.sigma[state.row] ** 2 * x / 2  # Tweedie's formula
        np.testing.assert_allclose(state.x0, expected, rtol=0, atol=1e-12 * np.abs(expected).max())  # roundings
        x = state.x


def test_rows_of_a_step_are_all_of_its_corrections_and_its_prediction() -> None:
    for count, each in ((1, 0), (3, 1), (4, 3)):
        plan = plan_from_config({**VE, "correct_steps": each}, count)
        assert plan.rows == count * (each + 1)
        assert plan.t.tolist() == np.repeat(plan.t[:: each + 1], each + 1).tolist()
        asked = [row for row in range(plan.rows) if plan.langevin is not None and plan.langevin.corrects(row)]
        assert asked == [row for row in range(plan.rows) if (row + 1) % (each + 1)]
        assert [plan.draws(row) for row in range(plan.rows)] == [True] * (plan.rows - 1) + [False]
    half = plan_from_config({**VE, "correct_steps": 2}, 8, strength=0.5)
    np.testing.assert_array_equal(half.table, plan_from_config({**VE, "correct_steps": 2}, 8).table[12:])
    assert half.langevin is not None
    assert half.langevin.corrects(0)


def test_a_correction_is_not_folded_into_the_step() -> None:
    for each in (0, 1):
        plan = plan_from_config({**VE, "correct_steps": each}, 4)
        assert can_fuse(plan, Request("a"), guide(1, ())) == (each == 0)


def test_a_score_of_zero_leaves_nothing_finite() -> None:
    """Which the pipeline names with its row."""
    plan = plan_from_config(VE, 3)
    with np.errstate(invalid="ignore"):
        first = next(steps(plan, normal64(0), lambda x, t: 0 * x, normal64))
    assert not np.isfinite(first.x).any()


@pytest.mark.parametrize(
    ("config", "more", "words"),
    [
        ({**VE, "sigma_max": 0.01}, {}, "sigma_max is not above sigma_min; expected above 0.01; found 0.01"),
        ({**VE, "sigma_max": 0.001}, {"name": "score_ve_heun"}, "sigma_max is not above sigma_min"),
        ({**VE, "snr": 0}, {}, "invalid snr; expected a number above 0; found 0"),
        ({**VE, "correct_steps": 101}, {}, "invalid correct_steps; expected at most 100; found 101"),
        ({**VE, "correct_steps": -1}, {}, "invalid correct_steps; expected a number 0 or above; found -1"),
        ({**VE, "sampling_eps": 1.5}, {}, "invalid sampling_eps; expected at most 1; found 1.5"),
        ({**VP, "sampling_eps": 0.0}, {}, "ScoreSdeVpScheduler has no finite plan for this config"),
        ({**VE, "step_by": "images"}, {}, "no step_by 'images' in ScoreSdeVeScheduler"),
        (VE, {"steps": 2001}, "invalid number of steps; expected 1 to 2000; found 2001"),
        (VE, {"name": "euler"}, "EulerDiscreteScheduler cannot replace ScoreSdeVeScheduler; expected a sampler of Sc"),
        (VE, {"name": "score_vp"}, "ScoreSdeVpScheduler cannot replace ScoreSdeVeScheduler"),
        ({"_class_name": "DDIMScheduler"}, {"name": "score_ve"}, "cannot replace DDIMScheduler; expected a sampler of"),
        (VE, {"start": 0.5}, "ScoreSdeVeScheduler has no timesteps to share; expected neither denoising_start nor"),
        (VP, {"end": 0.5}, "ScoreSdeVpScheduler has no timesteps to share"),
        (VE, {"timesteps": [9]}, "ScoreSdeVeScheduler takes no timesteps; expected steps alone"),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any], more: dict[str, Any], words: str) -> None:
    with pytest.raises(LdmrtError) as refused:
        plan_from_config(config, more.pop("steps", 10), **more)
    assert words in str(refused.value)
    invalid = ("cannot replace", "number of steps", "to share", "takes no")
    assert isinstance(refused.value, InvalidRequest) == any(one in words for one in invalid)
