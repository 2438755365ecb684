"""The samplers that have AUTOMATIC1111's names have k-diffusion's noise levels."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.pipeline.infotext.samplers import SAMPLERS, translated
from ldmrt.runtime.samplers.config import CONFIG
from ldmrt.runtime.samplers.registry import SCHEDULERS, plan_from_config
from ldmrt.runtime.samplers.settings import with_settings

Floats = NDArray[np.float64]
STEPS = 20
ABAR = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
TRAINED = np.sqrt((1 - ABAR) / ABAR)


def at(t: Floats) -> Floats:
    """The noise level at timesteps, as k-diffusion's `DiscreteSchedule.t_to_sigma`: logarithms are interpolated."""
    return np.exp(np.interp(t, np.arange(1000), np.log(TRAINED)))


def levels(label: str) -> Floats:
    """The noise levels of `modules/sd_schedulers.py` and `k_diffusion.sampling`, but the last one, which is 0."""
    high, low, ramp = TRAINED[-1], TRAINED[0], np.linspace(0, 1, STEPS)
    if label == "Uniform":
        return at(np.linspace(999, 0, STEPS))
    if label == "SGM Uniform":
        return at(np.linspace(999, 0, STEPS + 1)[:-1])
    if label == "Karras":
        return (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    if label == "Exponential":
        return np.exp(np.linspace(np.log(high), np.log(low), STEPS))
    from scipy.stats import beta

    return low + beta.ppf(1 - ramp, 0.6, 0.6) * (high - low)


PAIRS = [(name, label) for name, sampler in SAMPLERS.items() for label in sampler.spacings]


@pytest.mark.parametrize(("name", "label"), PAIRS)
def test_levels(name: str, label: str) -> None:
    scheduler, settings = translated(name, label)
    plan = plan_from_config(with_settings(CONFIG, settings, scheduler), STEPS, name=scheduler)
    base = SAMPLERS[name].scheduler
    calls, found = SCHEDULERS[base].calls, plan.sigma / plan.alpha
    found = found[::calls] if calls > 1 else found
    # Timesteps are rounded to whole ones in some solvers, and "trailing" counts from 1000: at most a timestep's worth.
    t = np.interp(np.log(levels(label)), np.log(TRAINED), np.arange(1000))
    own = np.interp(np.log(found), np.log(TRAINED), np.arange(1000))
    np.testing.assert_allclose(own, t, rtol=0, atol=1.0)


@pytest.mark.parametrize("steps", [7, 20, 50])
@pytest.mark.parametrize("name", ["DDIM", "PLMS"])
def test_samplers_of_timesteps_have_the_web_uis(name: str, steps: int) -> None:
    """`CompVisSampler.get_timesteps`; where the steps do not divide 1000 it has more than it is asked for."""
    scheduler, settings = translated(name, "Karras")  # which is not heeded
    plan = plan_from_config(with_settings(CONFIG, settings, scheduler), steps, name=scheduler)
    right = 1 + np.arange(0, 1000, 1000 // steps)[:steps][::-1]
    np.testing.assert_array_equal(list(dict.fromkeys(plan.t)), right)  # PLMS evaluates one of them twice


def test_unipc_has_the_web_uis_times() -> None:
    """`UniPC.get_time_steps` with `time_uniform`: from 1 to 1 / 1000, evaluated at all but the last."""
    scheduler, settings = translated("UniPC", None)
    plan = plan_from_config(with_settings(CONFIG, settings, scheduler), STEPS, name=scheduler)
    times = np.linspace(1, 1e-3, STEPS + 1)[:-1]
    np.testing.assert_allclose(plan.t, 1000 * times - 1, rtol=0, atol=0.5 + 1e-9)  # rounded to whole timesteps


def test_automatic_is_what_the_sampler_prefers() -> None:
    assert translated("DPM++ 2M", "Automatic") == translated("DPM++ 2M", "karras") == ("dpmpp_2m_karras", {})
    assert translated("DPM++ 2M SDE", None)[0] == "dpmpp_2m_sde_exponential"
    assert translated("Euler", None) == ("euler", {"timestep_spacing": "linspace"})


def test_older_names_have_the_scheduler_behind_them() -> None:
    assert translated("DPM++ 2M Karras", None) == ("dpmpp_2m_karras", {})
    assert translated("k_euler_a", None) == translated("euler a", None) == translated("Euler a", "Uniform")


def test_everyday_names_keep_the_models_settings() -> None:
    assert translated("dpmpp_2m", None) == ("dpmpp_2m", {})
    assert translated("euler", "Karras") == ("euler_karras", {})
    with pytest.raises(InvalidRequest, match="no Karras for tcd"):
        translated("tcd", "Karras")
