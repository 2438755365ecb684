"""Flows: shifts by the size of the image, and solvers of other classes on a flow's config, as diffusers has them."""

import contextlib
import math
from typing import Any

import numpy as np
import pytest

from ldmrt.runtime import InvalidRequest, LdmrtError, plan_from_config, sample
from ldmrt.runtime.samplers.config import CHURN, KEYS
from ldmrt.runtime.samplers.papers.flow_matching import EULER, HEUN

from ....support.exact_diffusers import Theirs, scheduler_class

STABLE_DIFFUSION_3: dict[str, Any] = {"_class_name": EULER, "shift": 3.0}
FLUX: dict[str, Any] = {"_class_name": EULER, "shift": 3.0, "use_dynamic_shifting": True}
TOKENS = (16, 256, 1024, 4096, 5000)
NOISE, IMAGE = np.random.default_rng(0).standard_normal((2, 2, 3, 4, 4))


@pytest.mark.oracle
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(
    "change",
    [
        {}, {"time_shift_type": "linear"}, {"base_shift": 0.3, "max_shift": 2.0, "max_image_seq_len": 1000},
        {"shift_terminal": 0.02}, {"use_karras_sigmas": True}, {"base_image_seq_len": 100, "num_train_timesteps": 500},
    ],
    ids=str,
)  # fmt: skip
def test_a_dynamic_shift_is_that_of_diffusers(tokens: int, change: dict[str, Any]) -> None:
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

    config = {**FLUX, **change}
    theirs = Theirs(EULER, config)
    of = theirs.exact.config
    keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    theirs.exact.set_timesteps(7, mu=calculate_shift(tokens, *(of[key] for key in keys)))
    plan = plan_from_config(config, 7, tokens=tokens)
    # float64 on both sides; a few roundings of levels of at most 1.
    np.testing.assert_allclose(plan.sigma, theirs.exact.sigmas[:-1].numpy(), rtol=0, atol=1e-14)
    np.testing.assert_allclose(plan.t, theirs.exact.timesteps.numpy(), rtol=0, atol=1e-11)


# A null for a truth is false here; diffusers adds three of them up, and fails.
NULLS = [
    (name, key)
    for name in (EULER, HEUN)
    for key, default in KEYS[name].items()
    if key not in CHURN and not isinstance(default, bool)
]


@pytest.mark.oracle
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("class_name", "key"), NULLS, ids=str)
def test_a_null_is_read_or_refused_where_diffusers_reads_or_refuses_it(
    class_name: str, key: str, dynamic: bool
) -> None:
    """Where diffusers never reads a key, as `shift` beside a dynamic one, a null is as good as any other."""
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

    config = {"_class_name": class_name, "shift": 3.0, "use_dynamic_shifting": dynamic, key: None}
    if class_name == HEUN:
        del config["use_dynamic_shifting"]
    theirs, found = None, None
    with contextlib.suppress(TypeError, ValueError):  # diffusers' errors where it computes with None
        exact = scheduler_class(class_name).from_config(config)
        keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        shifts = exact.config.get("use_dynamic_shifting")
        exact.set_timesteps(
            7, **({"mu": calculate_shift(1024, *(exact.config[key] for key in keys))} if shifts else {})
        )
        theirs = exact.sigmas[:-1].numpy()
    with contextlib.suppress(LdmrtError):
        found = plan_from_config(config, 7, tokens=1024).sigma
    assert (found is None) == (theirs is None)
    if found is not None:
        np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-6)  # diffusers rounds levels of at most 1 to float32


@pytest.mark.parametrize("class_name", [EULER, HEUN])
@pytest.mark.parametrize("value", ["3.0", math.nan, math.inf, 10**400, [1.0], {}, True])
def test_a_value_that_is_no_number_is_refused(class_name: str, value: object) -> None:
    for key, default in KEYS[class_name].items():
        if key not in CHURN and not isinstance(default, (bool, str)):
            with pytest.raises(LdmrtError, match=f"{key}|no shift for an image|levels do not descend|invalid number"):
                plan_from_config({"_class_name": class_name, "use_dynamic_shifting": True, key: value}, 7, tokens=256)


@pytest.mark.oracle
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(
    "change", [{}, {"use_dynamic_shifting": False, "shift": 1.0}, {"shift_terminal": 0.02}], ids=str
)
def test_trailing_levels_are_those_of_flux_pipelines(tokens: int, change: dict[str, Any]) -> None:
    """They are FLUX.1 dev's, schnell's, and those of a scheduler with a least level."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = {**FLUX, **change}
    theirs = Theirs(EULER, config)
    of = theirs.exact.config
    keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    theirs.exact.set_timesteps(
        sigmas=np.linspace(1.0, 1 / 7, 7), mu=calculate_shift(tokens, *(of[key] for key in keys))
    )
    plan = plan_from_config(config, 7, tokens=tokens, trailing=True)
    # float64 on both sides; a few roundings of levels of at most 1.
    np.testing.assert_allclose(plan.sigma, theirs.exact.sigmas[:-1].numpy(), rtol=0, atol=1e-14)
    np.testing.assert_allclose(plan.t, theirs.exact.timesteps.numpy(), rtol=0, atol=1e-11)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "class_name"),
    [("dpmpp_2m", "DPMSolverMultistepScheduler"), ("unipc", "UniPCMultistepScheduler"),
     ("deis", "DEISMultistepScheduler"), ("dpmpp_2s", "DPMSolverSinglestepScheduler")],
)  # fmt: skip
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_another_solver_runs_a_flow_as_diffusers_users_set_it(name: str, class_name: str, strength: float) -> None:
    """By `from_config` with flow levels, the flow's prediction and its shift; of 5 steps img2img has 3 at one half."""

    def network(x: Any, t: float) -> Any:
        return 0.7 * np.tanh(x * (1 + t / 1000))

    plan = plan_from_config(STABLE_DIFFUSION_3, 5, name=name, strength=strength)
    first = NOISE * plan.prior_scale if strength == 1 else plan.noised(IMAGE, NOISE)
    ours = sample(plan, first, network, lambda row: NOISE)
    asked = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    made = scheduler_class(class_name).from_config(STABLE_DIFFUSION_3, **asked)
    theirs = Theirs(class_name, dict(made.config))
    theirs.grid(0 if strength == 1 else 2, num_inference_steps=5)
    begun = theirs.first(NOISE, None if strength == 1 else IMAGE)
    found = theirs.walk(begun, network, plan.t, np.stack([NOISE] * plan.rows))
    np.testing.assert_allclose(ours, found, rtol=0, atol=1e-9 * np.abs(found).max())  # as the sweep has it


@pytest.mark.oracle
@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_a_dynamic_shift_of_another_solver_is_that_of_the_flow(tokens: int) -> None:
    """e^mu is a shift, of the same levels."""
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

    for name, key in (("dpmpp_2m", "flow_shift"), ("flow_heun", "shift")):
        fixed = {key: float(np.exp(calculate_shift(tokens))), "use_flow_sigmas": True}
        right = plan_from_config({**fixed, "prediction_type": "flow_prediction"}, 6, name=name)
        found = plan_from_config(FLUX, 6, name=name, tokens=tokens)
        np.testing.assert_allclose(found.sigma, right.sigma, rtol=1e-14)  # of one more rounding
        np.testing.assert_allclose(found.table, right.table, rtol=0, atol=1e-12)  # whose terms are below 10


def test_a_flow_that_another_class_is_set_to_is_run_by_flow_euler() -> None:
    """As Sana's config is, whose class is DPM-Solver's."""
    config = {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 3.0}
    found = plan_from_config({**config, "prediction_type": "flow_prediction"}, 6, name="flow_euler")
    np.testing.assert_array_equal(found.table, plan_from_config(STABLE_DIFFUSION_3, 6).table)


def test_fresh_noise_is_drawn_by_stochastic_sampling_alone() -> None:
    still, fresh = (plan_from_config({**STABLE_DIFFUSION_3, "stochastic_sampling": on}, 4) for on in (False, True))
    assert [still.draws(row) for row in range(4)] == [False] * 4
    assert [fresh.draws(row) for row in range(4)] == [True] * 3 + [False]


@pytest.mark.parametrize(
    ("config", "more", "problem"),
    [
        (FLUX, {}, "use_dynamic_shifting asks for the size of the image; expected a number of tokens"),
        ({**FLUX, "time_shift_type": "linear", "base_shift": -1}, {"tokens": 256}, "no shift for an image"),
        ({**FLUX, "shift_terminal": 1.0}, {"tokens": 1024}, "no finite plan"),
        *(({**FLUX, "max_image_seq_len": 256}, {"tokens": 1024, "name": name}, "has no shift for an image of this size")
          for name in (None, "dpmpp_2m")),
        ({**FLUX, "max_image_seq_len": 257}, {"tokens": 10**6, "name": "dpmpp_2m"}, "has no shift"),
        *((FLUX, {"tokens": one}, "tokens out of range") for one in (0, -5, "1024", 1.5, 10**9)),
        *(({**STABLE_DIFFUSION_3, "shift": one}, {"name": "dpmpp_2m"}, "invalid shift") for one in ("abc", None)),
        ({**STABLE_DIFFUSION_3, "invert_sigmas": True}, {"name": "dpmpp_2m"}, "no invert_sigmas True"),
        *(
            ({**STABLE_DIFFUSION_3, key: value}, {"name": "flow_heun"}, f"{HEUN} has no {key}")
            for key, value in (("shift_terminal", 0.1), ("use_karras_sigmas", True))
        ),
        ({**STABLE_DIFFUSION_3, "shift_terminal": 0.1}, {"name": "dpmpp_2m"}, "has no shift_terminal"),
        (STABLE_DIFFUSION_3, {"name": "dpmpp_2m", "start": 0.5}, f"{EULER} has no timesteps to share"),
        (FLUX, {"name": "dpmpp_2m"}, "use_dynamic_shifting asks for the size of the image"),
        ({"_class_name": EULER, "invert_sigmas": True}, {}, "no invert_sigmas True"),
        ({"_class_name": EULER, "time_shift_type": "cubic"}, {}, "no time_shift_type 'cubic'"),
        ({"_class_name": HEUN, "shift": 0}, {}, "invalid shift; expected a number above 0; found 0"),
        ({"_class_name": EULER, "use_karras_sigmas": True, "use_beta_sigmas": True}, {}, "two spacings"),
        ({"_class_name": "UniPCMultistepScheduler", "shift_terminal": 0.1}, {}, "has its own last level"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_dynamic_shifting": True}, {}, "asks for the size"),
    ],
)  # fmt: skip
def test_a_config_that_has_no_plan(config: dict[str, Any], more: dict[str, Any], problem: str) -> None:
    with pytest.raises(LdmrtError, match=problem):
        plan_from_config(config, 4, **more)


@pytest.mark.parametrize(
    ("config", "name", "problem"),
    [
        (STABLE_DIFFUSION_3, "ddim", f"DDIMScheduler cannot replace {EULER}; expected a sampler of flows"),
        (STABLE_DIFFUSION_3, "score_ve", "cannot replace"),
        (
            {"_class_name": "DDIMScheduler"},
            "flow_euler",
            "cannot replace DDIMScheduler; expected a sampler of ti",
        ),
    ],
)
def test_networks_of_other_equations_are_not_run(config: dict[str, Any], name: str, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        plan_from_config(config, 4, name=name)
