"""What a scheduler's config may say: the keys of each class, their defaults, and what is refused."""

import math
import warnings
from inspect import Parameter
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldmrt.runtime import SCHEDULERS, LdmrtError, LdmrtWarning, Plan, plan_from_config
from ldmrt.runtime.samplers.config import CHOICES, CHURN, CONTRADICTIONS, FOREIGN, KEYS, KNOWN, resolve
from ldmrt.runtime.samplers.registry import BY_CLASS, SPACINGS, everyday_name, find_scheduler

from ...support.exact_diffusers import Theirs, arguments
from ...support.sweep import VALUES


def refused(config: Any, *args: Any, **more: Any) -> str:
    """What is said of a config that has no plan."""
    with pytest.raises(LdmrtError) as raised:
        plan_from_config(config, *(args or (10,)), **more)
    assert raised.value.where == "scheduler"
    return str(raised.value)


@pytest.mark.oracle
@pytest.mark.parametrize("class_name", KEYS)
def test_keys_and_defaults_are_those_of_diffusers(class_name: str) -> None:
    """And those of its `step` that a config may hold here, where it has them."""
    ours, step = dict(KEYS[class_name]), arguments(class_name, "step")
    assert ours.pop("step_by", "image") == "image"  # which diffusers does not have: it steps by the batch
    churn = {key: ours.pop(key) for key in CHURN if key in ours}
    assert ours == {key: one.default for key, one in arguments(class_name, "__init__").items() if key != "self"}
    for key in churn:
        assert step.get(key, Parameter(key, Parameter.KEYWORD_ONLY, default=CHURN[key])).default == churn[key]


def test_every_class_has_a_name_and_every_name_a_class() -> None:
    assert {scheduler.class_name for scheduler in SCHEDULERS.values()} == set(KEYS) == set(BY_CLASS)
    for class_name in KEYS:
        name = everyday_name({"_class_name": class_name})
        assert name == next(name for name, one in SCHEDULERS.items() if one.class_name == class_name)
        assert find_scheduler({"_class_name": class_name}) == (SCHEDULERS[name], {})
    assert everyday_name({}) is None


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name in BY_CLASS.values()])
def test_bundles_own_scheduler_is_found_by_its_class(name: str) -> None:
    """A name may ask for what is the class's default anyway; else the two are one."""
    scheduler = SCHEDULERS[name]
    config = {"beta_schedule": "scaled_linear", **scheduler.asks}
    own = plan_from_config({**config, "_class_name": scheduler.class_name}, 5)
    np.testing.assert_array_equal(own.table, plan_from_config(config, 5, name=name).table)


def test_missing_keys_mean_the_defaults() -> None:
    for class_name, keys in KEYS.items():
        assert resolve({}, class_name) == dict(keys)
        assert resolve({"_class_name": "Other", "_diffusers_version": "0"}, class_name) == dict(keys)


@pytest.mark.parametrize("class_name", KEYS)
def test_a_null_in_place_of_a_truth_is_false(class_name: str) -> None:
    beside = {"final_sigmas_type": "sigma_min"} if "final_sigmas_type" in KEYS[class_name] else {}
    for key in (key for key, value in KEYS[class_name].items() if isinstance(value, bool)):
        assert resolve({**beside, key: None}, class_name) == resolve({**beside, key: False}, class_name)


def test_unknown_keys_are_named_once() -> None:
    config = {"_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.1", "sigma_mix": 1, "betas": 2}
    with pytest.warns(LdmrtWarning) as said:
        plan_from_config(config, 5)
    assert [str(one.message) for one in said] == ["scheduler: unknown keys betas, sigma_mix are skipped"]


@pytest.mark.parametrize("class_name", KEYS)
def test_keys_of_other_classes_are_left_out_in_silence(class_name: str) -> None:
    """A bundle's config is read by whichever scheduler the user names."""
    others = {key: VALUES.get(key, [None])[-1] for key in KNOWN - set(KEYS[class_name])}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve(others, class_name) == dict(KEYS[class_name])


@pytest.mark.parametrize(("prefix", "asked", "problem", "expected"), CONTRADICTIONS)
def test_every_impossible_setting_is_reached_and_explained(
    prefix: str, asked: dict[str, Any], problem: str, expected: str
) -> None:
    class_name = next(
        name for name in KEYS if name.startswith(prefix) and (not prefix or KEYS[name].keys() >= set(asked))
    )
    ending = {"final_sigmas_type": "sigma_min"} if "final_sigmas_type" in KEYS[class_name] else {}  # the possible one
    said = refused({**ending, **asked, "_class_name": class_name})
    assert f"{problem}; expected {expected}; found {class_name}" in said
    assert all(f"{key} {value}" in said for key, value in asked.items())


@pytest.mark.oracle
@pytest.mark.parametrize("class_name", KEYS)
@pytest.mark.parametrize("key", ["solver_type", "algorithm_type"])
def test_foreign_value_becomes_the_default_as_in_diffusers(class_name: str, key: str) -> None:
    if key not in KEYS[class_name]:
        return
    for value in (*CHOICES[key], "other"):
        config = (
            {"final_sigmas_type": "sigma_min", key: value} if "final_sigmas_type" in KEYS[class_name] else {key: value}
        )
        try:
            theirs = Theirs(class_name, config).real.config[key]
        except NotImplementedError:
            assert f"{key} {value}" in refused({**config, "_class_name": class_name}).replace("'", "")
        else:
            assert resolve(config, class_name)[key] == theirs


def test_foreign_values_are_choices() -> None:
    choices = {*CHOICES["solver_type"], *CHOICES["algorithm_type"]}
    assert choices.issuperset({*FOREIGN, *(value for values in FOREIGN.values() for value in values)})


@pytest.mark.parametrize("key", CHOICES)
def test_other_value_is_refused_with_the_choices(key: str) -> None:
    class_name, choices = next(name for name in KEYS if key in KEYS[name]), CHOICES[key]
    other = True if choices == (False,) else 7 if isinstance(choices[0], int) else "other"
    said = refused({"_class_name": class_name, key: other})
    assert f"no {key} {other!r} in {class_name}; expected {', '.join(str(choice) for choice in choices)}" in said


EULER: dict[str, Any] = {"_class_name": "EulerDiscreteScheduler"}
DDIM, DDPM, LCM, PNDM = ({"_class_name": f"{name}Scheduler"} for name in ("DDIM", "DDPM", "LCM", "PNDM"))


@pytest.mark.parametrize(
    ("config", "more", "words"),
    [
        *((EULER, {"steps": n}, f"invalid number of steps; expected 1 to 1000; found {n}") for n in (-1, 0, 1001)),
        *(
            (EULER, {"strength": strength}, f"invalid strength; expected above 0, at most 1; found {strength}")
            for strength in (-1.0, 0.0, 1.1, math.nan)
        ),
        *((DDIM, {"eta": eta}, f"invalid eta; expected 0 to 1; found {eta}") for eta in (-0.1, 1.1, math.nan)),
        (EULER, {"eta": 0.5}, "EulerDiscreteScheduler has no eta to choose; expected no eta; found 0.5"),
        (EULER, {"timesteps": [9], "sigmas": [9, 0]}, "two grids; expected timesteps or sigmas; found both"),
        *(
            (EULER, {"timesteps": grid}, f"invalid timesteps; expected numbers that descend; found {grid}")
            for grid in ([], [1, 2], [5, 5])
        ),
        *(
            (EULER, {"sigmas": grid}, f"invalid sigmas; expected numbers that descend; found {grid}")
            for grid in ([], [3], [1, 2], [5, 5])
        ),
        (
            DDIM,
            {"timesteps": [9]},
            "DDIMScheduler takes no timesteps; expected steps alone",
        ),
        (DDPM, {"sigmas": [9, 0]}, "DDPMScheduler takes no sigmas; expected steps alone"),
        (
            DDPM,
            {"timesteps": [1000, 9]},
            "leaves the schedule; expected below 1000; found 1000",
        ),
        ({**EULER, "use_karras_sigmas": True}, {"timesteps": [9]}, "timesteps cannot be chosen with use_karras_sigmas"),
        (
            {**EULER, "use_karras_sigmas": True, "use_beta_sigmas": True},
            {},
            "two spacings of the noise levels; expected one",
        ),
        ({**EULER, "beta_schedule": "laplace"}, {}, "no beta_schedule 'laplace'; expected linear, scaled_linear, "),
        (
            {**EULER, "timestep_spacing": "even"},
            {},
            "no timestep_spacing 'even'; expected leading, linspace or",
        ),
        ({**EULER, "final_sigmas_type": "tiny"}, {}, "no final_sigmas_type 'tiny'; expected zero or sigma_min"),
        (LCM, {"steps": 51}, "invalid number of steps; expected 1 to 50; found 51"),
        (
            PNDM,
            {"steps": 3},
            "too few steps for Runge-Kutta; expected 4 steps, or skip_prk",
        ),
        (
            {**LCM, "rescale_betas_zero_snr": True},
            {},
            "expected prediction_type v_prediction or",
        ),
        *(({"_class_name": name}, {"steps": n}, "invalid number of steps") for name in KEYS for n in (-2, 0)),
        *(
            ({"_class_name": name, "num_train_timesteps": 10**9}, {}, "expected at most 1000000; found 1000000000")
            for name in KEYS
        ),
    ],
)
def test_impossible_request_says_what_is_expected(config: dict[str, Any], more: dict[str, Any], words: str) -> None:
    assert words in refused(config, more.pop("steps", 10), **more)


@pytest.mark.parametrize(("config", "name"), [({}, "karras"), ({}, "ddim_"), ({}, "karras_ddim"), ({}, ""), ({}, None),
                                              ({"_class_name": "UnCLIPScheduler"}, None)])  # fmt: skip
def test_unknown_scheduler_is_answered_with_the_names(config: dict[str, Any], name: str | None) -> None:
    said = refused(config, name=name)
    asked = config.get("_class_name") if name is None else name
    assert f"unknown scheduler {asked!r}" in said
    assert f"; expected {', '.join(SCHEDULERS)}" in said


@pytest.mark.parametrize(("name", "kind"), list(product(SCHEDULERS, SPACINGS)))
def test_name_may_end_in_a_spacing(name: str, kind: str) -> None:
    scheduler, asked = find_scheduler({"use_karras_sigmas": True}, f"{name}_{kind}")
    assert scheduler is SCHEDULERS[name]
    assert asked == {**scheduler.asks, **{f"use_{other}_sigmas": other == kind for other in SPACINGS}}
    if f"use_{kind}_sigmas" in KEYS[scheduler.class_name]:
        spaced = plan_from_config({f"use_{kind}_sigmas": True}, 5, name=name)
        np.testing.assert_array_equal(plan_from_config({}, 5, name=f"{name}_{kind}").table, spaced.table)
    else:
        assert f"{scheduler.class_name} has no use_{kind}_sigmas" in refused({}, name=f"{name}_{kind}")


def test_name_has_the_last_word() -> None:
    config = {"solver_order": 1, "algorithm_type": "dpmsolver++", "use_beta_sigmas": True, "final_sigmas_type": "zero"}
    np.testing.assert_array_equal(
        plan_from_config(config, 9, name="dpm_3m_karras").table,
        plan_from_config({"use_karras_sigmas": True}, 9, name="dpm_3m").table,
    )


JUNK = [None, True, -1, 0, 1, 3, 2.5, -0.5, 1e300, math.nan, math.inf, -math.inf, "", "a", [], [1.0], ["a"], {}, 2000]


@st.composite
def configs(draw: st.DrawFn, junk: bool) -> dict[str, Any]:
    """Some keys of a class, with values of the sweep or, for junk, with any at all."""
    class_name = draw(st.sampled_from(list(KEYS)))
    keys = draw(st.sets(st.sampled_from(sorted(KEYS[class_name])), max_size=5))
    values = {key: [*VALUES.get(key, [KEYS[class_name][key]]), *(JUNK if junk else [])] for key in sorted(keys)}
    return {"_class_name": class_name} | {key: draw(st.sampled_from(some)) for key, some in values.items()}


def problem(config: dict[str, Any], steps: int, **more: Any) -> str:
    """What comes of a config but a finite plan or an error of ours."""
    try:
        with np.errstate(all="ignore"):  # on the way to a refusal
            plan: Plan = plan_from_config(config, steps, **more)
    except LdmrtError:
        return ""
    except Exception as error:
        return f"{error!r:.100}"
    numbers = (plan.t, plan.alpha, plan.sigma, plan.read, plan.table, plan.prior_scale, plan.clip, plan.spread)
    return "" if all(np.isfinite(number).all() for number in numbers if number is not None) else "not finite"


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(
    configs(junk=False),
    st.one_of(st.integers(1, 60), st.sampled_from([-2, 0, 500, 999, 1000, 1001])),
    st.floats(0, 1),
    st.sampled_from([None, 0.0, 0.5, 1.0]),
)
def test_config_of_possible_values_has_a_finite_plan_or_is_refused(
    config: dict[str, Any], steps: int, strength: float, eta: float | None
) -> None:
    assert problem(config, steps, strength=strength, eta=eta) == ""


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(configs(junk=True))
def test_config_of_any_values_has_a_finite_plan_or_is_refused(config: dict[str, Any]) -> None:
    assert problem(config, 7) == ""


@pytest.mark.parametrize("class_name", KEYS)
def test_value_of_a_wrong_kind_is_refused_or_does_nothing(class_name: str) -> None:
    values = list(product(KEYS[class_name], [None, "a", [1.0], -1, math.nan, math.inf]))
    said = [(key, value, problem({"_class_name": class_name, key: value}, 7)) for key, value in values]
    assert not [one for one in said if one[-1]]
