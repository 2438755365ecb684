"""Every scheduler of the table against diffusers' class of the same name, over what a config may say (sweep.py).

diffusers is computed in float64 (exact_diffusers.py), so that a difference is one of formulas and not of roundings. A
new line of `SCHEDULERS` and a new key of `KEYS` are swept without a word here; a key without values in the sweep fails
a test.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import numpy as np
import pytest

from ldmrt.runtime import SCHEDULERS, LdmrtError, Plan, plan_from_config, sample
from ldmrt.runtime.samplers.config import KEYS
from ldmrt.runtime.samplers.registry import SPACINGS, find_scheduler

from ...support.exact_diffusers import Array, Theirs, arguments, scheduler_class
from ...support.sweep import ETA, OURS, THEIRS, TOGETHER, UNSWEPT, VALUES, Config, Without, alone, takes, together

STEPS = (1, 2, 4, 10, 25, 50)
STRENGTHS = (1.0, 0.75, 0.5, 0.3)
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
STABLE_DIFFUSION |= {"steps_offset": 1, "set_alpha_to_one": False}
LEVELS = [key for key in VALUES if key.startswith("use_")]  # grids of noise levels, whose timesteps have to be found
# Which have no `step`, but a predictor and a corrector: test_score_sde.py.
STEPPED = [name for name in KEYS if not name.startswith("ScoreSde")]
NAMES = [name for name, scheduler in SCHEDULERS.items() if scheduler.class_name in STEPPED]
NO_PICTURE = ("IPNDMScheduler",)  # which have no add_noise in diffusers
SHAPE = (2, 3, 2, 2)
DRAWS = np.random.default_rng(0).standard_normal((102, *SHAPE))
NOISE, PICTURE, *_ = np.random.default_rng(1).standard_normal((2, *SHAPE))
pytestmark = pytest.mark.oracle


def network(x: Array, t: float, channels: int = SHAPE[1]) -> Array:
    """Not linear, so that no two rows commute and no error cancels. Past x's own channels, a variance."""
    out = np.tanh(x * (1 + t / 1000)) * 0.7 + 0.1 * np.sin(3 * x)
    return np.concatenate([out, 0.5 + 0.4 * np.sin(out + x)], axis=1)[:, :channels]


@dataclass(frozen=True)
class Case:
    """One trajectory, computed by both."""

    config: Config
    steps: int
    strength: float = 1.0
    name: str | None = None  # None: the config names its class
    given: Config = field(default_factory=dict)  # a grid in place of steps

    @cached_property
    def class_name(self) -> str:
        return find_scheduler(self.config, self.name)[0].class_name

    @cached_property
    def full(self) -> Config:
        """The config with what the name asks of it."""
        return {**self.config, **find_scheduler(self.config, self.name)[1]}

    @cached_property
    def plan(self) -> Plan:
        config = {key: value for key, value in self.config.items() if key != "eta"}
        asked = {"name": self.name, "strength": self.strength, "eta": self.config.get("eta"), **self.given}
        return plan_from_config(config, self.steps, **asked)

    @cached_property
    def picture(self) -> Array | None:
        return PICTURE if self.strength < 1 else None

    def network(self, x: Array, t: float) -> Array:
        learned = str(self.full.get("variance_type")).startswith("learned")
        return network(x, t, SHAPE[1] * (2 if learned else 1))

    def ours(self) -> Array:
        """Our last latents."""
        first = NOISE * self.plan.prior_scale if self.picture is None else self.plan.noised(self.picture, NOISE)
        return sample(self.plan, first, self.network, lambda row: DRAWS[row])

    def theirs(self, seed: int | None = None) -> tuple[Array, Array, Array]:
        """diffusers' last latents and timesteps (`Theirs.grid`); with a seed, from numbers with other last bits."""
        made = Theirs(self.class_name, self.full)
        if seed is not None:
            made.shake(seed)
        count = len(next(iter(self.given.values()))) - ("sigmas" in self.given) if self.given else self.steps
        begin = count - max(1, int(count * self.strength))  # as diffusers' img2img pipelines count
        if self.class_name.startswith("FlowMatch"):
            begin = int(max(count - min(count * self.strength, count), 0))  # and those of Stable Diffusion 3 and Flux
        real, exact = made.grid(begin, **(self.given or {"num_inference_steps": self.steps}))
        if len(real) != self.plan.rows:
            raise AssertionError(f"{self.plan.rows} rows, where diffusers has {len(real)}")
        return made.walk(made.first(NOISE, self.picture), self.network, self.plan.t, DRAWS), real, exact

    def problem(self) -> str:
        """What is wrong with the trajectory, if something is that the tables do not explain."""
        try:
            found = self.ours()
        except LdmrtError as error:
            return self._unexplained(OURS, str(error))
        except Exception as error:
            return f"ours raises {error!r}"
        try:
            x, real, exact = self.theirs()
        except Exception as error:
            return self._unexplained(THEIRS, f"{type(error).__name__}: {error}")
        if not np.isfinite(x).all():
            return self._unexplained(THEIRS, "nan")
        if np.isnan(real).any() and (wrong := self._unexplained(THEIRS, "nan in the times")):
            return wrong
        if not times_agree(self.plan.t, real, exact, self.full):
            return f"times {self.plan.t}, where diffusers has {real}"

        def away(other: Array) -> float:
            return float(np.abs(other - x).max() / (np.abs(x).max() or 1.0))

        if away(found) <= 1e-9:
            return ""
        # Where Runge-Kutta is cut into, or noise levels are 20000 and more, float64 itself leaves fewer digits: those
        # that stay when the last bits of what diffusers computes from are others.
        if any(away(found) <= 5 * away(self.theirs(seed)[0]) for seed in range(16)):
            return ""
        return f"{away(found):.2g} away"

    def __str__(self) -> str:
        config = {key: value for key, value in self.config.items() if key not in ("_class_name", "trained_betas")}
        return f"{config}, {self.steps} steps, strength {self.strength}"

    def _unexplained(self, table: Sequence[Without], said: str) -> str:
        return "" if any(one.covers(self.class_name, self.full, said) for one in table) else said


def times_agree(found: Array, real: Array, exact: Array, config: Config) -> bool:
    """Whether timesteps are those of diffusers: to the last bit where it has whole ones, or all that float64 gives.

    Others it finds in float32 by the logarithms of noise levels, and near t = 0 little is left of 1 - alpha_bar: they
    are within 5 times its own distance to float64, and a rounding.
    """
    known = np.isfinite(real)
    found, real, exact = found[known].astype(np.float32), real[known], exact[known]
    noise = np.abs(real - exact)
    allowed = 5 * noise[real != real.round()].max(initial=0.0)
    if allowed:
        allowed += np.spacing(np.abs(real).astype(np.float32))
    elif config.get("rescale_betas_zero_snr") and any(config.get(key) for key in LEVELS):
        # Without terminal signal the levels differ between machines, as torch's float32 roots do, and the last of them
        # do not ascend: one level is that of several timesteps.
        allowed = noise + np.where(real > 990, 5, 1)
    return bool((np.abs(found - real) <= allowed + 1e-9).all())  # of a timestep: what interpolation leaves of 0


def check(cases: Iterable[Case]) -> None:
    """That none of them has a problem, of those that diffusers can be asked for."""
    possible = (case for case in cases if case.strength == 1 or case.class_name not in NO_PICTURE)
    wrong = [f"{case}: {problem}" for case in possible if (problem := case.problem())]
    assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong[:20])


RESPACED = [
    f"{name}_{kind}"
    for name, scheduler in SCHEDULERS.items()
    for kind in SPACINGS
    if f"use_{kind}_sigmas" in KEYS[scheduler.class_name]
]
SWEPT = [(name, group) for name in STEPPED for group in TOGETHER if together(name, group)]
RUNS = ((4, 1.0), (9, 0.5))
# Orders and how they end: below 15 steps and from there on, and after singlestep's blocks of 2 or 3, of whatever rest.
LONGER = dict.fromkeys(("solver", "unipc", "ending"), ((4, 1.0), (14, 0.75), (15, 0.5)))


@pytest.mark.parametrize("most", [25, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_name_is_that_scheduler_of_diffusers(name: str, most: int) -> None:
    counts = [n for n in STEPS if (n <= 25) == (most == 25)]
    check(Case(STABLE_DIFFUSION, n, s, name) for n in counts for s in STRENGTHS)
    check(Case({}, n, s, name) for n in counts for s in STRENGTHS[::2])


@pytest.mark.parametrize("name", RESPACED)
def test_name_with_a_spacing_is_that_of_diffusers(name: str) -> None:
    check(Case(STABLE_DIFFUSION, n, s, name) for n, s in ((4, 1.0), (10, 0.5), (25, 1.0)))


@pytest.mark.parametrize("class_name", STEPPED)
def test_each_value_means_what_it_means_to_diffusers(class_name: str) -> None:
    configs = [{**config, "_class_name": class_name} for config in alone(class_name)]
    check(Case(config, n, s) for config in configs for n, s in ((1, 1.0), (10, 1.0), (25, 0.5)))


# Groups overlap in pairs of keys: every third is tried by default, beside each value alone.
THINNED = [pytest.param(*one, marks=[pytest.mark.slow] if place % 3 else []) for place, one in enumerate(SWEPT)]


@pytest.mark.parametrize(("class_name", "group"), THINNED)
def test_values_together_mean_what_they_mean_to_diffusers(class_name: str, group: str) -> None:
    configs = [{**config, "_class_name": class_name} for config in together(class_name, group)]
    check(Case(config, n, s) for config in configs for n, s in LONGER.get(group, RUNS))


@pytest.mark.parametrize(
    "given", [{"timesteps": [999, 700, 401, 19]}, {"sigmas": [14.0, 7.0, 3.0, 1.0, 0.0]}], ids=list
)
def test_grid_that_is_handed_in_is_that_of_diffusers(given: Config) -> None:
    (kind,) = given
    classes = {scheduler.class_name: name for name, scheduler in SCHEDULERS.items() if kind in scheduler.given}
    names = [name for class_name, name in classes.items() if kind in arguments(class_name, "set_timesteps")]
    assert "euler" in names
    configs = [{**STABLE_DIFFUSION, **prediction} for prediction in ({}, {"prediction_type": "v_prediction"})]
    check(Case(config, 10, s, name, given) for name in names for config in configs for s in (1.0, 0.5))


def test_sigmoid_betas() -> None:
    """Of DDPM alone: no other class of diffusers knows them, so they are no axis of the sweep."""
    base = {"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"}
    kinds = product(("epsilon", "v_prediction", "sample"), ("leading", "trailing"), (False, True))
    check(
        Case({**base, "prediction_type": one, "timestep_spacing": spacing, "rescale_betas_zero_snr": zero}, steps)
        for one, spacing, zero in kinds
        if not (zero and one == "epsilon")
        for steps in STEPS
    )


@pytest.mark.parametrize("one", [*THEIRS, *OURS], ids=lambda one: f"{one.classes}-{one.says}")
def test_what_cannot_be_compared_still_cannot(one: Without) -> None:
    """An exception in the tables that is no more would hide what it covers."""
    class_name = next(name for name in KEYS if name.startswith(one.classes) and takes(name).issuperset(one.config))
    case = Case({**one.shown, "_class_name": class_name}, one.steps)
    if one in OURS:
        with pytest.raises(LdmrtError) as refused:
            case.ours()
        assert one.says in str(refused.value)
    elif one.says.startswith("nan"):
        x, real, _ = case.theirs()
        assert not np.isfinite(real if "times" in one.says else x).all()
    else:
        with pytest.raises(Exception) as raised:  # noqa: PT011  # diffusers' many kinds, named by the table
            case.theirs()
        assert one.says in f"{raised.type.__name__}: {raised.value}"


def test_sweep_knows_every_key() -> None:
    assert {key for keys in KEYS.values() for key in keys} == {*VALUES, *UNSWEPT}
    assert {name for name in KEYS if "eta" in arguments(name, "step")} == set(ETA)
    without = {name for name in STEPPED if not hasattr(scheduler_class(name), "add_noise")}
    assert {name for name in without if not hasattr(scheduler_class(name), "scale_noise")} == set(NO_PICTURE)
    assert [name for name in KEYS if hasattr(scheduler_class(name), "step")] == STEPPED
