"""Samplers on problems whose solution is known in closed form."""

import math
from typing import Any

import numpy as np
import pytest

from ldmrt.runtime import SCHEDULERS, Plan, plan_from_config, sample

from .test_orders import Floats, law, walk

SPACED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}


SPACED |= {"timestep_spacing": "leading", "set_alpha_to_one": True, "timestep_scaling": 1e9}


KNOWN = np.array([-1.3, 0.0, 0.4, 2.0])


PREDICTIONS: dict[str, dict[str, Any]] = {
    "epsilon": {},
    "v_prediction": {"prediction_type": "v_prediction"},
    "sample": {"prediction_type": "sample"},
    "flow_prediction": {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
    "zero snr": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
}


DPMS = [name for name in SCHEDULERS if name.startswith("dpm") and SCHEDULERS[name].class_name.startswith("DPMSolver")]


FLOWING = {*(name for name in DPMS if name != "dpmpp_sde"), "unipc", "deis"}


RESCALED = FLOWING - {"deis", "dpmpp_2s", "dpmpp_3s"} | {"ddim", "ddpm", "euler", "euler_a", "lcm", "tcd"}


DRAWS = {"ddpm", "euler_a", "dpm2_a", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "lcm", "tcd"}


def possible(name: str, prediction: str, strength: float) -> bool:
    """False where diffusers has no such thing, or writes one that does not follow even this."""
    if name in ("pndm", "plms"):  # adds up v of different nodes; cuts its rows where img2img starts in mid-step
        return prediction in ("epsilon", "sample") and strength == 1
    if name == "lms" and strength < 1:  # weighs slopes that img2img has not seen
        return False
    if name == "ipndm":  # starts from noise alone, and keeps none of the x0 that it is told there
        return prediction == "v_prediction" and strength < 1
    if name in ("score_ve", "score_vp"):  # take steps of Euler-Maruyama, which are not exact for this either
        return False
    if name.startswith("score"):  # no config says what they predict
        return prediction == "epsilon"
    if name.startswith("flow"):
        return prediction == "flow_prediction"
    if name.startswith("edm"):
        return prediction in ("epsilon", "v_prediction")
    return {"flow_prediction": name in FLOWING, "zero snr": name in RESCALED}.get(prediction, True)


KNOWING = [
    (name, prediction, strength, eta)
    for name, scheduler in SCHEDULERS.items()
    for prediction in PREDICTIONS
    for strength in (1.0, 0.5)
    for eta in ((None,) if scheduler.eta is None else (None, 0.0, 0.5))
    if possible(name, prediction, strength)
]


def along(plan: Plan, name: str, config: dict[str, Any]) -> list[tuple[float, float]]:
    """(alpha, sigma) of the latents after every row: of the next row, then of the end."""
    grid = [*zip(plan.alpha[1:].tolist(), plan.sigma[1:].tolist(), strict=True)]
    least = math.sqrt(0.00085)
    if name in ("dpm_2m", "dpm_3m", "deis", "tcd"):  # end at the least noise of training
        level = least / math.sqrt(1 - least**2)
        if "use_flow_sigmas" in config:
            least = plan.sigma[-1] if name == "deis" else level
            return [*grid, (1 - least, least)]
        return [*grid, (math.sqrt(1 - least**2), least)]
    return [*grid, (1.0, 0.0)]


@pytest.mark.parametrize(("name", "prediction", "strength", "eta"), KNOWING)
def test_network_that_knows_the_picture_is_believed(
    name: str, prediction: str, strength: float, eta: float | None
) -> None:
    config = {**SPACED, **PREDICTIONS[prediction]}
    plan = plan_from_config(config, 10, name=name, strength=strength, eta=eta)
    run = law(plan, plan.alpha[0] * KNOWN, plan.sigma[0], lambda *_: KNOWN)
    # roundings of float64; what is read as x0 has been divided by alpha. DDPM draws 1e-10 where it should draw nothing.
    near = 2.0**-52 * 100 / plan.alpha[plan.alpha > 0].min() + 1.01e-10 * (name == "ddpm")
    near *= max(1.0, plan.prior_scale)  # which is how large the latents are
    for (_, mean, units), (alpha, sigma) in zip(run, along(plan, name, config), strict=True):
        np.testing.assert_allclose(mean, alpha * KNOWN, rtol=0, atol=near)
        np.testing.assert_allclose(np.sqrt((units**2).sum(0)), sigma, rtol=0, atol=near)  # whatever it is made of
        if eta == 0 or (eta is None and name not in DRAWS):
            np.testing.assert_allclose(units[0], sigma, rtol=0, atol=near)  # the first noise and no other
            assert not units[1:].any()


@pytest.mark.parametrize(
    ("name", "prediction", "strength", "eta"),
    [
        case
        for case in KNOWING
        if case[1] != "zero snr"
        and (case[3] == 0 or case[0] not in DRAWS)
        and not (case[0].startswith("flow") and case[2] == 1)  # begins with noise alone, which leaves x0 open
    ],
)
def test_network_that_says_one_noise_is_followed(
    name: str, prediction: str, strength: float, eta: float | None
) -> None:
    config = {**SPACED, **PREDICTIONS[prediction]}
    plan = plan_from_config(config, 10, name=name, strength=strength, eta=0.0 if SCHEDULERS[name].eta else None)
    eps = np.array([[[[0.3, -1.2, 2.0]]]])
    x0 = np.array([[[[1.1, 0.0, -0.6]]]])
    x = plan.alpha[0] * x0 + plan.sigma[0] * eps
    # as above; here nothing pulls an error of the first row back
    near = 2.0**-52 * 200 / plan.alpha[0] * max(1.0, plan.prior_scale)
    run = walk(plan, x, lambda x, alpha, sigma: (x - sigma * eps) / alpha)
    for state, (alpha, sigma) in zip(run, along(plan, name, config), strict=True):
        np.testing.assert_allclose(state.x, alpha * x0 + sigma * eps, rtol=0, atol=near)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_plan_is_linear(name: str) -> None:
    plan = plan_from_config({**SPACED, "correct_steps": 0}, 10, name=name)  # Langevin's step size is not linear
    draws = np.random.default_rng(0).standard_normal((2, 1 + plan.rows, 1, 2, 3, 4), dtype=np.float32)

    def network(x: Floats, t: float) -> Floats:
        return np.roll(x, 1, axis=-1) - x / 4

    def run(a: float, b: float, dtype: Any) -> Floats:
        first, *noise = np.tensordot(np.array([a, b], dtype), draws.astype(dtype), axes=1)
        return sample(plan, first, network, lambda row: noise[row])

    np.testing.assert_array_equal(run(4, 0, np.float32), 4 * run(1, 0, np.float32))  # a power of two rounds nothing
    both, one, other = (run(a, b, np.float64) for a, b in ((1, 1), (1, 0), (0, 1)))
    np.testing.assert_allclose(both, one + other, rtol=0, atol=1e-12 * np.abs(both).max())  # roundings of float64
