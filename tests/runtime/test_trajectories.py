"""Every scheduler of the table against diffusers' class of the same name."""

import importlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ldmrt.runtime import SCHEDULERS, plan_from_config, sample
from ldmrt.runtime.schedule import betas

BETAS = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
}
CONFIG = {**BETAS["scaled_linear"], "clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False}
NOT_THERE = {
    ("euler_a", "sample"): "diffusers has not implemented it",
    ("euler_a", "linspace", "squaredcos_cap_v2"): "diffusers' float32 takes the root of a negative number",
}
ROUNDING = 2.0**-24  # of a float32
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # inside diffusers
]


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
    """The largest difference to diffusers' result, relative to its largest value; and what its rounding explains."""
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
        if hasattr(theirs, "set_begin_index"):
            theirs.set_begin_index(begin)
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
    # diffusers holds betas, sigmas and x in float32, ldmrt its tables in float64. 2e-5: a product of a thousand rounded
    # factors. Over alpha: x rounded, then read as x0; up to 4 sigmas of noise against results of a quarter: 16.
    # Over sigma**2: the root of a rounded 1 - alpha**2.
    explained = 2e-5 + 16 * ROUNDING / plan.alpha.min() + 0.5 * ROUNDING / plan.sigma.min() ** 2
    assert np.isfinite(mine).all()
    return float(np.abs(mine - x.numpy()).max() / np.abs(x.numpy()).max()), float(explained)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_trajectory_is_that_of_diffusers(
    name: str, prediction: str, spacing: str, beta: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why := NOT_THERE.get((name, prediction)) or NOT_THERE.get((name, spacing, beta)):
        pytest.skip(why)
    config = {**CONFIG, **BETAS[beta], "timestep_spacing": spacing, "prediction_type": prediction}
    for steps in (1, 2, 4, 10, 25, 30):
        found, explained = difference(config, steps, name, monkeypatch)
        assert found <= explained, f"{steps} steps"


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
        pytest.param("dpmpp_2m", {"final_sigmas_type": "sigma_min"}, {"strength": 0.5}),
        ("euler", {}, {"strength": 0.5}),
        ("euler_a", {"timestep_spacing": "trailing"}, {"strength": 0.35}),
    ],
)
def test_variant_is_that_of_diffusers(
    name: str, change: dict[str, Any], more: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps in (4, 10, 20):
        found, explained = difference({**CONFIG, **change}, steps, name, monkeypatch, **more)
        assert found <= explained, f"{steps} steps"


@pytest.mark.parametrize("beta", BETAS)
def test_betas_are_those_of_diffusers(beta: str) -> None:
    import diffusers

    theirs = diffusers.DDIMScheduler.from_config(BETAS[beta]).betas.numpy()
    np.testing.assert_allclose(betas(BETAS[beta]), theirs, rtol=1e-6)  # theirs are float32
