"""Noise schedules, and the grids that a config and a number of steps ask for."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from ldmrt.runtime import SCHEDULERS, LdmrtError, Plan, plan_from_config
from ldmrt.runtime.samplers.config import KEYS, resolve
from ldmrt.runtime.samplers.grid import distilled_grid, edm_grid, late_grid, sine_grid, whole_grid
from ldmrt.runtime.samplers.schedule import (
    ZERO_SNR,
    alphas_cumprod,
    beta_quantile,
    betas,
    float32_cumprod,
    karras,
    levels,
    spaced,
    split,
    times,
)

from ...support.exact_diffusers import Theirs
from ...support.sweep import VALUES

Config = dict[str, Any]
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULES: dict[str, Config] = {
    "linear": {},
    "scaled_linear": STABLE_DIFFUSION,
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "trained": {"trained_betas": VALUES["trained_betas"][0]},
    "few": {"num_train_timesteps": 37},
    "odd": {**STABLE_DIFFUSION, "num_train_timesteps": 501},
}
ROUNDING = 2.0**-53  # of a float64


def config(class_name: str = "DDIMScheduler", **change: Any) -> Config:
    return resolve(change, class_name)


def plan(name: str, steps: int, **more: Any) -> Plan:
    return plan_from_config({**STABLE_DIFFUSION, "clip_sample": False}, steps, name=name, **more)


@pytest.mark.oracle
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_betas_are_those_of_diffusers(schedule: str) -> None:
    theirs = Theirs("DDIMScheduler", SCHEDULES[schedule]).exact.betas.numpy()
    # torch counts a line from both ends; the last cosines are 1e-3, of angles rounded close to pi / 2
    np.testing.assert_allclose(betas(config(**SCHEDULES[schedule])), theirs, rtol=4e3 * ROUNDING)


@pytest.mark.oracle
@pytest.mark.parametrize("change", [{}, {"beta_start": 1e-7, "beta_end": 2e-3, "num_train_timesteps": 5000}])
def test_sigmoid_betas_are_those_of_diffusers(change: Config) -> None:
    """Of the one class that knows them there; GeoDiff's own range is the second."""
    asked = {"beta_schedule": "sigmoid", **change}
    theirs = Theirs("DDPMScheduler", asked).exact.betas.numpy()
    # an exponential of a line that torch counts from both ends, and a sum with a number that is far smaller
    np.testing.assert_allclose(betas(config("DDPMScheduler", **asked)), theirs, rtol=64 * ROUNDING)


@pytest.mark.oracle
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("class_name", "least"), [("DDIMScheduler", 0.0), ("EulerDiscreteScheduler", ZERO_SNR)])
def test_alpha_bar_is_that_of_diffusers(class_name: str, least: float, schedule: str, zero_snr: bool) -> None:
    asked = {**SCHEDULES[schedule], "rescale_betas_zero_snr": zero_snr}
    theirs = Theirs(class_name, asked).exact.alphas_cumprod.numpy()
    ours = alphas_cumprod(config(class_name, **asked), zero=least)
    # A product of a thousand factors, each rounded. The root that is rescaled loses, beside the last root, which is
    # taken from it, as many digits as it is smaller.
    lost = 1 + (
        np.sqrt(alphas_cumprod(config(**SCHEDULES[schedule]))[-1] / np.maximum(theirs, 1e-300)) if zero_snr else 0
    )
    np.testing.assert_array_less(np.abs(ours - theirs), 4e3 * ROUNDING * lost * theirs + 1e-300)
    assert not zero_snr or ours[-1] == least


@pytest.mark.oracle
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_float32_roundings_are_those_of_torch(schedule: str) -> None:
    theirs = Theirs("EulerDiscreteScheduler", SCHEDULES[schedule]).real.alphas_cumprod.numpy()
    np.testing.assert_array_equal(float32_cumprod(config("EulerDiscreteScheduler", **SCHEDULES[schedule])), theirs)


@pytest.mark.oracle
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_float32_roundings_without_terminal_signal_are_nearly_those_of_torch(schedule: str) -> None:
    """A sixth of torch's float32 roots is not the nearest float32, on this machine."""
    asked = {**SCHEDULES[schedule], "rescale_betas_zero_snr": True}
    theirs = Theirs("EulerDiscreteScheduler", asked).real.alphas_cumprod.numpy()
    found = float32_cumprod(config("EulerDiscreteScheduler", **asked))
    np.testing.assert_allclose(found, theirs, rtol=0, atol=16 * 2.0**-24)  # of numbers up to 1, a few roundings
    assert found[-1] == theirs[-1] == ZERO_SNR


def test_zero_snr_keeps_the_first_and_ends_without_signal() -> None:
    for schedule in ("linear", "scaled_linear", "trained"):
        kept, rescaled = (
            alphas_cumprod(config(**SCHEDULES[schedule], rescale_betas_zero_snr=s)) for s in (False, True)
        )
        assert rescaled[-1] == 0
        assert rescaled[0] == pytest.approx(kept[0], rel=8 * ROUNDING)
        assert (np.diff(rescaled) < 0).all()


@pytest.mark.oracle
def test_beta_quantile_is_that_of_scipy() -> None:
    from scipy.stats import beta

    p = np.concatenate([np.linspace(0, 1, 1001), 1 - np.linspace(0, 1, 37), np.geomspace(1e-12, 0.5, 50)])
    for a in (0.6, 0.5, 0.9):
        np.testing.assert_allclose(
            beta_quantile(p, a), beta.ppf(p, a, a), rtol=1e-12, atol=ROUNDING
        )  # as scipy promises


def test_beta_quantile_is_the_arc_sine_law_at_a_half() -> None:
    p = np.linspace(0, 1, 101)
    np.testing.assert_allclose(beta_quantile(p, 0.5), np.sin(np.pi * p / 2) ** 2, atol=8 * ROUNDING)


def test_karras_levels_run_from_high_to_low() -> None:
    ramp = np.linspace(0, 1, 9)
    for high, low, rho in ((14.6, 0.03, 7.0), (80.0, 0.002, 7.0), (3.0, 1.0, 1.0)):
        found = karras(high, low, ramp, rho)
        np.testing.assert_allclose(found[[0, -1]], [high, low], rtol=64 * ROUNDING)  # a seventh power of a root
        np.testing.assert_allclose(np.diff(found ** (1 / rho), 2), 0, atol=1e-14)  # evenly in the root
    np.testing.assert_allclose(karras(3.0, 1.0, ramp, 1.0), np.linspace(3, 1, 9), rtol=8 * ROUNDING)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_time_of_a_level_is_its_timestep(schedule: str) -> None:
    abar = alphas_cumprod(config(**SCHEDULES[schedule]))
    np.testing.assert_allclose(times(levels(abar), abar), np.arange(len(abar)), rtol=1e-9, atol=1e-9)
    between = np.sqrt(levels(abar)[1:] * levels(abar)[:-1])  # geometric middles
    np.testing.assert_allclose(times(between, abar), np.arange(len(abar) - 1) + 0.5, rtol=1e-9, atol=1e-9)
    beyond = np.array([0.0, levels(abar)[0] / 2, levels(abar)[-1] * 2])
    assert times(beyond, abar).tolist() == [0, 0, len(abar) - 1]


def test_split_level_has_unit_variance() -> None:
    for level in (0.0, 1e-3, 1.0, 157.0):
        alpha, sigma = split(level)
        assert alpha**2 + sigma**2 == pytest.approx(1, abs=4 * ROUNDING)
        assert sigma / alpha == pytest.approx(level, rel=4 * ROUNDING)


SPACED = [
    ("DDIMScheduler", "linspace", 0),
    ("DDIMScheduler", "leading", 0),
    ("DDIMScheduler", "trailing", 0),
    ("EulerDiscreteScheduler", "linspace", 0),
    ("EulerDiscreteScheduler", "leading", 0),
    ("EulerDiscreteScheduler", "trailing", 0),
    ("UniPCMultistepScheduler", "linspace", 1),
    ("UniPCMultistepScheduler", "leading", 1),
    ("UniPCMultistepScheduler", "trailing", 1),
]


@pytest.mark.oracle
@pytest.mark.parametrize(("class_name", "spacing", "extra"), SPACED)
def test_every_number_of_steps_is_spaced_as_in_diffusers(class_name: str, spacing: str, extra: int) -> None:
    asked = {"timestep_spacing": spacing, "steps_offset": 1}
    theirs, c = Theirs(class_name, asked), config(class_name, **asked)
    beyond = []
    for steps in range(1, 1001 - extra):  # 1000 with `extra` are one timestep a thousand times, in diffusers
        real, _ = theirs.grid(0, num_inference_steps=steps)
        found = spaced(c, steps, extra=extra)
        found = found if class_name == "EulerDiscreteScheduler" else found.round()
        if len(real) > steps:  # diffusers' arange(1000, 0, -1000 / steps) ends in a rounded 0, and that in timestep -1
            beyond.append(steps)
            assert real[-1] == -1
        np.testing.assert_array_equal(found.astype(np.float32), real[:steps], err_msg=f"{steps} steps")
    assert bool(beyond) == (spacing == "trailing")


@pytest.mark.oracle
@pytest.mark.parametrize("class_name", ["LCMScheduler", "TCDScheduler"])
@pytest.mark.parametrize("original", [50, 100, 37])
def test_every_number_of_distilled_steps_is_that_of_diffusers(class_name: str, original: int) -> None:
    c = config(class_name, original_inference_steps=original)
    theirs = Theirs(class_name, c)
    for steps in range(1, original + 1):
        found = [node.t for node, _ in distilled_grid(c, steps, last=None).steps]
        np.testing.assert_array_equal(found, theirs.grid(0, num_inference_steps=steps)[0], err_msg=f"{steps} steps")


def test_last_node_is_where_the_config_says() -> None:
    first = alphas_cumprod(config())[0]
    for one, alpha in ((True, 1.0), (False, math.sqrt(first))):
        assert whole_grid(config(set_alpha_to_one=one), 10).steps[-1][1].alpha == alpha
    for end, level in (("zero", 0.0), ("sigma_min", levels(alphas_cumprod(config()))[0])):
        c = config("DPMSolverMultistepScheduler", final_sigmas_type=end)
        assert late_grid(c, 10).steps[-1][1].level == pytest.approx(level, rel=8 * ROUNDING)
        c = config("EDMEulerScheduler", final_sigmas_type=end)
        assert edm_grid(c, 10).steps[-1][1].level == (0.0 if end == "zero" else c["sigma_min"])


def test_edm_and_sine_grids_run_between_their_ends() -> None:
    for kind in VALUES["sigma_schedule"]:
        steps = edm_grid(config("EDMEulerScheduler", sigma_schedule=kind), 10).steps
        np.testing.assert_allclose([steps[0][0].level, steps[-1][0].level], [80.0, 0.002], rtol=64 * ROUNDING)
        for node, _ in steps:
            assert node.t == pytest.approx(math.log(node.level) / 4, rel=1e-12)
            assert node.alpha == pytest.approx(1 / math.hypot(node.level, 0.5), rel=4 * ROUNDING)
    grid = sine_grid(config("IPNDMScheduler"), 10).steps
    assert (grid[0][0].t, grid[0][0].sigma, grid[-1][1].sigma) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_each_node_leads_to_the_next_but_for_ddims_stride(name: str) -> None:
    scheduler = SCHEDULERS[name]
    c = {**resolve(dict(scheduler.asks), scheduler.class_name), **scheduler.fixed}
    steps = scheduler.grid(c, 7).steps
    assert len(steps) == 7
    for (node, to), (after, _) in pairwise(steps):
        assert (node.t, node.alpha, node.sigma) > (to.t, 0, to.sigma)
        assert node.alpha < to.alpha or (name.startswith("score_ve") and node.alpha == to.alpha == 1)
        assert to == after or name == "ddim"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_strength_takes_the_last_steps(name: str) -> None:
    whole = plan(name, 20)
    for strength, kept in ((1.0, 20), (0.75, 15), (0.5, 10), (0.05, 1), (0.01, 1)):
        part = plan(name, 20, strength=strength)
        begin = whole.rows - part.rows
        np.testing.assert_array_equal(part.t, whole.t[begin:])
        np.testing.assert_array_equal(part.alpha, whole.alpha[begin:])
        twice = ("heun", "dpm2", "dpm2_a", "dpmpp_sde", "score_ve", "score_ve_heun", "flow_heun")
        assert begin == (2 if name in twice else 1) * (20 - kept)
        assert not part.table[0, 0, 2:-2].any()  # nothing was saved before its first row
        if whole.table.shape[1] == 1:
            np.testing.assert_array_equal(part.table, whole.table[begin:])  # it never has a memory


@pytest.mark.parametrize("name", [name for name, one in SCHEDULERS.items() if "timesteps" in one.given])
def test_timesteps_that_are_handed_in_are_those_counted(name: str) -> None:
    spacing = {"timestep_spacing": "leading"} if "timestep_spacing" in KEYS[SCHEDULERS[name].class_name] else {}
    counted = plan_from_config({**STABLE_DIFFUSION, **spacing}, 8, name=name)
    real = counted.t[:: 1 if counted.rows == 8 else 2]  # not those between two steps
    handed = plan_from_config({**STABLE_DIFFUSION, **spacing}, 8, name=name, timesteps=real.tolist())
    np.testing.assert_array_equal(handed.t, counted.t)
    np.testing.assert_array_equal(handed.table, counted.table)


@pytest.mark.parametrize("name", [name for name, one in SCHEDULERS.items() if "sigmas" in one.given])
def test_levels_that_are_handed_in_are_those_counted(name: str) -> None:
    scheduler = SCHEDULERS[name]
    c = {**resolve(dict(STABLE_DIFFUSION), scheduler.class_name), **scheduler.fixed}
    grid = scheduler.grid(c, 8)
    handed = plan_from_config(STABLE_DIFFUSION, 1, name=name, sigmas=[*(node.level for node, _ in grid.steps), 0.0])
    counted = plan_from_config(STABLE_DIFFUSION, 8, name=name)
    assert handed.rows == counted.rows
    # The times are found from the levels, in float32's logarithms: to a few thousandths of a timestep near t = 0.
    np.testing.assert_allclose(handed.t, counted.t, atol=0.01)
    np.testing.assert_allclose(handed.table, counted.table, rtol=1e-9, atol=1e-9)  # levels were split and put together


@pytest.mark.parametrize("spacing", VALUES["timestep_spacing"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_grid_descends_or_is_refused(name: str, spacing: str) -> None:
    asked = {**STABLE_DIFFUSION, "timestep_spacing": spacing, "steps_offset": 1}
    fewest = 4 if name == "pndm" else 1
    for steps in (1, 2, 4, 50, 999, 1000):
        try:
            made = plan_from_config(asked, steps, name=name)
        except LdmrtError:
            assert steps > 50 or steps < fewest
            continue
        assert np.isfinite(made.table).all()
        scheduler = SCHEDULERS[name]
        c = {**resolve({**asked, **scheduler.asks}, scheduler.class_name), **scheduler.fixed}
        t = np.array([node.t for node, _ in scheduler.grid(c, steps).steps])
        assert (np.diff(t) < 0).all() if steps <= 50 else (np.diff(t) <= 0).all()  # diffusers rounds, too
        assert len(t) == 1 or t[0] > t[-1]
