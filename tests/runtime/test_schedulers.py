"""Every scheduler of the table against diffusers' class of the same name, and what a config may not ask for."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ldmrt.runtime import SCHEDULERS, LdmrtError, plan_from_config, sample
from ldmrt.runtime.schedule import betas

BETAS = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
}
CONFIG = {**BETAS["scaled_linear"], "clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False}
NO_SAMPLE = ("euler_a",)  # diffusers' class has not implemented it
ROUNDING = 2.0**-24  # of a float32


def network(x: NDArray[Any], t: float) -> NDArray[np.float32]:
    """Not linear, so that no two rows commute and no error cancels."""
    return (np.tanh(x * (1 + t / 1000)) * 0.7 + 0.1 * np.sin(3 * x)).astype(np.float32)


def difference(
    config: dict[str, Any],
    steps: int,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    eta: float | None = None,
    strength: float = 1.0,
) -> tuple[float, float]:
    """The largest difference to diffusers' trajectory, relative to its largest value; and what may be expected of it."""
    import diffusers
    import torch

    cls = getattr(diffusers, SCHEDULERS[name].class_name)
    theirs = cls.from_config(dict(config))
    theirs.set_timesteps(steps)
    shape = (2, 3, 4, 4)
    first = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    draws = np.random.default_rng(1).standard_normal((steps, *shape), dtype=np.float32)

    plan = plan_from_config(config, steps, name=name, eta=eta, strength=strength)
    begin = steps - plan.rows  # as diffusers' img2img pipelines count
    times = theirs.timesteps[begin:]
    np.testing.assert_array_equal(plan.t.astype(np.float32), times.numpy().astype(np.float32))
    if begin:
        theirs.set_begin_index(begin) if hasattr(theirs, "set_begin_index") else None
        picture = np.random.default_rng(2).standard_normal(shape, dtype=np.float32)
        mine = plan.noised(picture, first)
        x = theirs.add_noise(torch.from_numpy(picture), torch.from_numpy(first), times[:1].repeat(len(picture)))
    else:
        mine = first * np.float32(plan.prior_scale)
        x = torch.from_numpy(first) * theirs.init_noise_sigma
    mine = sample(plan, mine, network, lambda row: draws[row])

    queue = iter(draws)
    module = importlib.import_module(cls.__module__)
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: torch.from_numpy(next(queue)))
    extra = {} if eta is None else {"eta": eta}
    for t in times:
        seen = theirs.scale_model_input(x, t)
        x = theirs.step(torch.from_numpy(network(seen.numpy(), float(t))), t, x, **extra).prev_sample
    # diffusers holds betas, sigmas and x in float32, ldmrt its tables in float64: a cumulative product of a thousand
    # rounded factors; x, or x / alpha, rounded and then read as x0; and at small t the rounding of 1 - sigma**2.
    expected = 2e-5 + 8 * ROUNDING / plan.alpha.min() + 0.5 * ROUNDING / plan.sigma[0] ** 2
    return float(np.abs(mine - x.numpy()).max() / np.abs(x.numpy()).max()), float(expected)


@pytest.mark.oracle
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_trajectory_is_that_of_diffusers(
    name: str, prediction: str, spacing: str, beta: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if prediction == "sample" and name in NO_SAMPLE:
        pytest.skip("diffusers has not implemented it")
    config = {**CONFIG, **BETAS[beta], "timestep_spacing": spacing, "prediction_type": prediction}
    for steps in (1, 2, 4, 10, 25, 30):
        found, expected = difference(config, steps, name, monkeypatch)
        assert found <= expected, f"{steps} steps"


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "change", "more"),
    [
        ("ddim", {"set_alpha_to_one": True, "steps_offset": 0}, {}),
        ("ddim", {}, {"eta": 0.5}),
        ("ddim", {}, {"eta": 1.0}),
        ("ddim", {"num_train_timesteps": 500}, {}),
        ("ddim", {}, {"strength": 0.5}),
        ("ddpm", {}, {"strength": 0.3}),
        ("dpmpp_2m", {"lower_order_final": False, "final_sigmas_type": "sigma_min"}, {}),
        ("dpmpp_2m", {"final_sigmas_type": "sigma_min"}, {}),
        ("dpmpp_2m", {}, {"strength": 0.5}),
    ],
)
def test_variant_is_that_of_diffusers(
    name: str, change: dict[str, Any], more: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps in (4, 10, 20):
        found, expected = difference({**CONFIG, **change}, steps, name, monkeypatch, **more)
        assert found <= expected, f"{steps} steps"


@pytest.mark.oracle
@pytest.mark.parametrize("beta", BETAS)
def test_betas_are_those_of_diffusers(beta: str) -> None:
    import diffusers

    theirs = diffusers.DDIMScheduler.from_config(BETAS[beta]).betas.numpy()
    np.testing.assert_allclose(betas(BETAS[beta]), theirs, rtol=1e-6)  # theirs are float32


def test_bundles_own_scheduler_is_found_by_its_class() -> None:
    for name, scheduler in SCHEDULERS.items():
        config = {**CONFIG, "_class_name": scheduler.class_name}
        np.testing.assert_array_equal(plan_from_config(config, 5).table, plan_from_config(CONFIG, 5, name=name).table)


def plan(steps: int = 10, *, name: str | None = "ddim", strength: float = 1.0, eta: float | None = None,
         **change: Any) -> Callable[[], Any]:  # fmt: skip
    return lambda: plan_from_config({**CONFIG, **change}, steps, name=name, strength=strength, eta=eta)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (plan(name="heun"), "unknown scheduler 'heun'; expected ddim, ddpm"),
        (plan(name=None, _class_name="HeunDiscreteScheduler"), "unknown scheduler 'HeunDiscreteScheduler'"),
        (plan(name=None), "unknown scheduler None"),
        *((plan(steps), "impossible number of steps; expected 1 to 1000") for steps in (-1, 0, 1001)),
        *((plan(eta=eta), "impossible eta; expected 0 to 1") for eta in (-0.1, 1.1, np.nan)),
        *((plan(strength=strength), "impossible strength") for strength in (-1.0, 0.0, 1.1, np.nan)),
        (plan(prediction_type="flow"), "no prediction_type 'flow'; expected epsilon, sample, v_prediction"),
        (plan(timestep_spacing="even"), "no timestep_spacing 'even'; expected leading, linspace, trailing"),
        (plan(beta_schedule="sigmoid"), "no beta_schedule 'sigmoid'; expected linear, scaled_linear"),
        (plan(clip_sample=True), "clip_sample is not supported; expected False; found True"),
        (plan(trained_betas=[0.1]), "trained_betas is not supported"),
        (plan(name="ddpm", variance_type="learned"), "variance_type is not supported; expected fixed_small"),
        (plan(name="euler", use_karras_sigmas=True), "use_karras_sigmas is not supported"),
        (plan(name="euler", final_sigmas_type="tiny"), "no final_sigmas_type 'tiny'; expected zero or sigma_min"),
        (plan(name="dpmpp_2m", algorithm_type="sde-dpmsolver"), "algorithm_type is not supported"),
        (plan(name="dpmpp_2m", solver_order=3), "solver_order is not supported; expected 2; found 3"),
    ],
)
def test_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(LdmrtError) as raised:
        make()
    assert raised.value.where == "scheduler"
    assert words in str(raised.value)


def test_strength_takes_the_last_rows() -> None:
    whole = plan(10)()
    for strength, rows in ((1.0, 10), (0.75, 7), (0.5, 5), (0.1, 1), (0.01, 1)):
        part = plan(10, strength=strength)()
        assert part.rows == rows
        np.testing.assert_array_equal(part.t, whole.t[-rows:])
        np.testing.assert_array_equal(part.table, whole.table[-rows:])  # a one-step sampler has no memory
    solver = plan(10, name="dpmpp_2m", strength=0.5)()
    assert solver.table[0, 0, 3] == 0  # solved anew: nothing came before its first row
