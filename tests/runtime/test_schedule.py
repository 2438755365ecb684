"""From a scheduler's config to a plan: which grid, and what a config or a caller may not ask for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ldmrt.runtime import SCHEDULERS, LdmrtError, plan_from_config

CONFIG = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


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
        (plan(name="dpmpp_2m", final_sigmas_type="tiny"), "no final_sigmas_type 'tiny'; expected zero or sigma_min"),
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


def test_what_a_config_leaves_out_is_as_in_diffusers() -> None:
    assert plan(timestep_spacing="leading")().t.tolist() == plan()().t.tolist()
    assert plan(name="euler", timestep_spacing="linspace")().t.tolist() == plan(name="euler")().t.tolist()
    linear = {**CONFIG, "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
    bare = {key: value for key, value in linear.items() if not key.startswith("beta")}
    assert (
        plan_from_config(bare, 5, name="ddim").alpha.tolist() == plan_from_config(linear, 5, name="ddim").alpha.tolist()
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("DDIMScheduler", {"clip_sample": ...}),  # left out, diffusers clips
        ("DDPMScheduler", {"clip_sample": ...}),
        ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -5.1}),
        ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}),  # diffusers' last x is not scaled by alpha
    ],
)
def test_what_would_change_the_picture_is_refused(name: str, change: dict[str, Any]) -> None:
    config = {key: value for key, value in {**CONFIG, "_class_name": name, **change}.items() if value is not ...}
    with pytest.raises(LdmrtError, match=next(iter(change))):
        plan_from_config(config, 5)


@pytest.mark.parametrize(
    ("name", "spacing", "steps"),
    [
        *((name, spacing, 50) for name in SCHEDULERS for spacing in ("leading", "linspace", "trailing")),
        *((name, spacing, 1000) for name in SCHEDULERS for spacing in ("trailing",)),
        pytest.param("ddim", "leading", 1000),
        pytest.param("ddpm", "leading", 1000),
        pytest.param("dpmpp_2m", "leading", 1000),
        pytest.param("dpmpp_2m", "linspace", 1000),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_grid_descends_or_is_refused(name: str, spacing: str, steps: int) -> None:
    try:
        made = plan(steps, name=name, timestep_spacing=spacing)()
    except LdmrtError:
        assert steps > 50
        return
    assert (np.diff(made.t) < 0).all()
    assert np.isfinite(made.table).all()
