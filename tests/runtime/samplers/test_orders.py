"""What the samplers owe to mathematics alone: they follow flows that are known, at the order that the table claims."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ldmrt.runtime import SCHEDULERS, Plan, State, plan_from_config, steps

Floats = NDArray[np.float64]
Clean = Callable[[Floats, float, float], Floats]  # x0 of (x, alpha, sigma)


def walk(plan: Plan, x: Floats, clean: Clean, noise: Any = None) -> Iterator[State]:
    """`steps` with a network that knows x0 and says it as the plan reads it."""
    rows = iter(range(plan.rows))

    def network(x: Floats, t: float) -> Floats:
        row = next(rows)
        kx, km = plan.read[row]
        return (clean(x, plan.alpha[row], plan.sigma[row]) - kx * x) / km

    return steps(plan, x, network, noise)


# Data whose flow is known: the means, deviations and shares of its parts, (3, [x,] parts).

WIDTHS = np.array([0.2, 0.3, 0.4, 0.6, 0.8, 1.4])
GAUSSIANS = np.stack(np.broadcast_arrays(0.7, WIDTHS[:, None], 1.0))  # one for each x
MIXTURE = np.array([[-0.9, 0.8], [0.5, 0.4], [0.35, 0.65]])
STARTS = np.array([-1.5, -0.8, -0.1, 0.4, 1.2, 1.9])  # deviations of noise


def parts(data: Floats, x: Floats, alpha: float, sigma: float) -> tuple[Floats, Floats]:
    """The deviation of every part at a noise level, and how many of them x is from its mean."""
    deviation = np.hypot(alpha * data[1], sigma)
    return deviation, (x[..., None] - alpha * data[0]) / deviation


def denoised(data: Floats, x: Floats, alpha: float, sigma: float) -> Floats:
    """E[x0 | x]: linear in x for a Gaussian."""
    deviation, off = parts(data, x, alpha, sigma)
    share = data[2] / deviation * np.exp(-(off**2) / 2)
    out: Floats = (share * (data[0] + alpha * data[1] ** 2 / deviation * off)).sum(-1) / share.sum(-1)
    return out


def below(data: Floats, x: Floats, alpha: float, sigma: float) -> Floats:
    """The probability of less than x."""
    normal = np.vectorize(lambda off: math.erfc(-off / math.sqrt(2)) / 2)
    out: Floats = (data[2] * normal(parts(data, x, alpha, sigma)[1])).sum(-1)
    return out


def flow(data: Floats, x: Floats, start: tuple[float, float], end: tuple[float, float]) -> Floats:
    """The probability flow from one (alpha, sigma) to another. In one dimension no two paths meet, so that the share
    of data below a path never changes.
    """
    share, low, high = below(data, x, *start), np.full_like(x, -30.0), np.full_like(x, 30.0)
    for _ in range(60):  # 60 / 2**60 is beyond float64
        middle = (low + high) / 2
        left = below(data, middle, *end) < share
        low, high = np.where(left, middle, low), np.where(left, high, middle)
    return (low + high) / 2


# Grids. Training has so many timesteps that rounding to whole ones does not show.

T = 120_000
CONFIG: dict[str, Any] = {"beta_start": 0.1 / T, "beta_end": 20 / T, "num_train_timesteps": T, "clip_sample": False}
CONFIG |= {"timestep_spacing": "trailing", "original_inference_steps": 960}
Grid = Callable[[int], dict[str, Any]]


def even(steps: int) -> dict[str, Any]:
    """Steps from 0.9 T to 0.2 T. What follows them is not looked at: it keeps the lower orders of a plan's end away."""
    return {"timesteps": np.round(T * np.append(np.linspace(0.9, 0.2, steps + 1), [0.15, 0.1, 0.05]))}


def soft(steps: int) -> dict[str, Any]:
    """The same, begun with steps that double from nothing: a multistep solver has no past to go by, and its first rows
    of first and second order would hide the order of the others.
    """
    whole = 0.7 * T / steps
    ramp = 0.9 * T - np.cumsum([0.0, *(s for k in range(17) if (s := 8 * 2.0**k) < whole)])
    rest = np.linspace(ramp[-1], 0.2 * T, math.ceil((ramp[-1] - 0.2 * T) / whole) + 1)
    return {"timesteps": np.round(np.concatenate([ramp, rest[1:], T * np.array([0.15, 0.1, 0.05])]))}


def strided(steps: int) -> dict[str, Any]:
    """From T to T / 4, for schedulers that take no grid."""
    return {}


def late(steps: int) -> dict[str, Any]:
    """Without the first quarter: improved PNDM starts from noise alone and leaves out the first x0."""
    return {"strength": 0.75}


def karras(steps: int) -> dict[str, Any]:
    """Noise levels."""
    return {"sigmas": [*np.linspace(10 ** (1 / 7), 0.25 ** (1 / 7), steps + 1) ** 7, 0.1]}


def own(steps: int) -> dict[str, Any]:
    """As the scheduler spaces its own levels."""
    return {}


DPM, DPM_SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
ENDS = {even: 0.2, soft: 0.2, strided: 0.25}


def level(t: float) -> float:
    """sigma / alpha of a timestep of `CONFIG`."""
    abar = np.cumprod(1 - np.linspace(CONFIG["beta_start"], CONFIG["beta_end"], T))[round(t)]
    return math.sqrt(1 / abar - 1)


def ends(plan: Plan, grid: Grid) -> tuple[int, tuple[float, float], tuple[float, float]]:
    """The row after which to look, and (alpha, sigma) at the start and there: where the next row begins a step."""
    target = level(ENDS[grid] * T - (grid is strided)) if grid in ENDS else 0.25
    levels = plan.sigma[1:] / plan.alpha[1:]
    nearest = levels[np.argmin(np.abs(np.log(levels / target)))]
    row = int(np.flatnonzero(levels == nearest)[-1])  # rows within a step see its end too
    return row, (plan.alpha[0], plan.sigma[0]), (plan.alpha[row + 1], plan.sigma[row + 1])


def error(plan: Plan, grid: Grid, data: Floats) -> Floats:
    """How far the solver is from the flow, by `STARTS`."""
    row, start, end = ends(plan, grid)
    x = (start[0] * 0.2 + start[1] * STARTS)[None, None, None]
    found = next(state.x for state in walk(plan, x, lambda *at: denoised(data, *at)) if state.row == row)
    return found - flow(data, x, start, end)


STEPS = (120, 240)  # whole blocks of singlestep solvers, whole strides of T, and T / 4 on the grid
# The next term of an error's expansion is smaller by the length of a step, in lambda 0.05 at 120 steps, times a factor
# that is largest, about 5, where the first term is small: DPM-Solver++ 3M misses order 3 by half a coefficient alone.
SLACK = 0.3

FLOWS: list[tuple[str, dict[str, Any], Grid]] = [
    ("ddim", {}, strided),
    ("tcd", {"eta": 0.0}, strided),
    ("pndm", {}, strided),
    ("plms", {}, strided),
    ("lms", {}, soft),
    ("euler", {}, even),
    ("euler", {}, karras),
    ("euler_a", {"eta": 0.0}, even),
    ("heun", {}, even),
    ("heun", {}, karras),
    ("dpm2", {}, even),
    ("dpm2", {}, karras),
    ("dpm2_a", {"eta": 0.0}, even),
    ("dpmpp_2m", {}, soft),
    ("dpmpp_2m", {"solver_type": "heun"}, soft),
    ("dpmpp_3m", {}, soft),
    ("dpm_2m", {}, soft),
    ("dpm_2m", {"solver_type": "heun"}, soft),
    ("dpm_3m", {}, soft),
    ("dpmpp_2s", {}, even),
    ("dpmpp_2s", {"solver_type": "heun"}, even),
    ("dpmpp_3s", {}, even),
    ("dpmpp_3s", {"solver_type": "heun"}, even),
    ("unipc", {}, soft),
    ("unipc", {"solver_type": "bh1"}, soft),
    ("unipc", {"predict_x0": False, "final_sigmas_type": "sigma_min"}, soft),
    ("deis", {}, soft),
    ("ipndm", {}, late),
    ("edm_euler", {}, own),
    ("edm_euler", {"sigma_schedule": "exponential"}, own),
    ("edm_dpmpp_2m", {}, own),
    ("edm_dpmpp_2m", {"sigma_schedule": "exponential"}, own),
    ("score_ve_euler", {}, own),
    ("score_ve_heun", {}, own),
    ("flow_euler", {}, own),
    ("flow_heun", {}, own),
]
# Where a config asks for another order than that of its name.
OTHER_FLOWS: list[tuple[str, dict[str, Any], Grid, int]] = [
    ("unipc", {"solver_order": 1}, soft, 2),
    ("unipc", {"solver_order": 3}, soft, 4),
    ("deis", {"solver_order": 1}, soft, 1),
    ("deis", {"solver_order": 3}, soft, 3),
    ("edm_dpmpp_2m", {"solver_order": 3}, own, 2),
]
LAWS: list[tuple[str, dict[str, Any], Grid]] = [
    ("ddpm", {}, even),
    ("ddpm", {"variance_type": "fixed_large"}, even),
    ("euler_a", {}, even),
    ("dpm2_a", {}, even),
    ("dpmpp_sde", {}, even),
    ("dpmpp_2m_sde", {}, soft),
    ("dpmpp_2m_sde", {"solver_type": "heun"}, soft),
    ("dpmpp_3m_sde", {}, soft),
    ("score_ve", {"correct_steps": 0}, own),  # a correction is no step toward the data
]
OTHER_LAWS: list[tuple[str, dict[str, Any], Grid, int]] = [
    ("ddim", {"eta": 1.0}, strided, 1),
    ("ddim", {"eta": 0.5}, strided, 1),
    ("dpmpp_2m", {"algorithm_type": "sde-dpmsolver++", "solver_order": 1, "_class_name": DPM}, even, 1),
    # Singlestep, the noise of a whole step and of its parts are drawn apart.
    ("dpmpp_2s", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "_class_name": DPM_SINGLE}, even, 1),
    ("dpmpp_3s", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "_class_name": DPM_SINGLE}, even, 1),
]


def claimed(cases: list[tuple[str, dict[str, Any], Grid]], others: list[tuple[str, dict[str, Any], Grid, int]]) -> Any:
    return [*((*case, SCHEDULERS[case[0]].order) for case in cases), *others]


def planned(name: str, change: dict[str, Any], grid: Grid, n: int) -> Plan:
    config = {**(CONFIG if grid not in (own, late) else {}), **change}
    eta = config.pop("eta", None)
    return plan_from_config(config, n, name=None if "_class_name" in config else name, eta=eta, **grid(n))


def slope(measure: Callable[[Plan], Floats], name: str, change: dict[str, Any], grid: Grid) -> float:
    """The order: how often an error halves when the steps do. The median of six, as in single ones terms may cancel."""
    few, many = (measure(planned(name, change, grid, n)) for n in STEPS)
    return float(np.median(np.log2(np.abs(few / many))))


def test_flow_is_the_closed_one_of_gaussian_data() -> None:
    start, end, x = (0.1, 0.995), (0.9, 0.44), STARTS
    closed = 0.9 * 0.7 + (x - 0.1 * 0.7) * np.hypot(0.9 * WIDTHS, 0.44) / np.hypot(0.1 * WIDTHS, 0.995)
    np.testing.assert_allclose(flow(GAUSSIANS, x, start, end), closed, rtol=0, atol=1e-13)  # roundings of a share


@pytest.mark.parametrize(("name", "change", "grid", "order"), claimed(FLOWS, OTHER_FLOWS))
def test_order_on_a_known_flow(name: str, change: dict[str, Any], grid: Grid, order: int) -> None:
    linear = slope(lambda plan: error(plan, grid, GAUSSIANS), name, change, grid)
    mixed = slope(lambda plan: error(plan, grid, MIXTURE), name, change, grid)
    assert [linear, mixed] == pytest.approx([order, order], abs=SLACK)


def law(plan: Plan, mean: Floats, deviation: Floats | float, clean: Clean) -> Iterator[tuple[int, Floats, Floats]]:
    """Row, mean, and what every unit of noise has become: first latents, then each row's. Where x0 is linear in x they
    are known without drawing: a picture of the batch has one unit, and the first none. `mean` is (n,).
    """
    units = np.eye(plan.rows + 2)[:, :, None, None, None] * np.ones(len(mean))  # (picture, unit, 1, 1, n)
    for state in walk(plan, mean + deviation * units[:, 1], clean, lambda row: units[:, row + 2]):
        x = state.x[:, 0, 0]
        yield state.row, x[0], x[1:] - x[0]


def variance_error(plan: Plan, grid: Grid) -> Floats:
    row, start, end = ends(plan, grid)
    first, last = (np.hypot(alpha * WIDTHS, sigma) for alpha, sigma in (start, end))
    run = law(plan, start[0] * GAUSSIANS[0, :, 0], first, lambda *at: denoised(GAUSSIANS, *at))
    mean, units = next((mean, units) for at, mean, units in run if at == row)
    np.testing.assert_allclose(mean, end[0] * 0.7, rtol=0, atol=1e-10)  # hundreds of rows, over the first alpha
    out: Floats = (units**2).sum(0) - last**2
    return out


@pytest.mark.parametrize(("name", "change", "grid", "order"), claimed(LAWS, OTHER_LAWS))
def test_order_in_law(name: str, change: dict[str, Any], grid: Grid, order: int) -> None:
    """Of the variance, where noise is drawn: Gaussian data stays Gaussian. test_score_sde.py has that of `score_vp`."""
    assert slope(lambda plan: variance_error(plan, grid), name, change, grid) == pytest.approx(order, abs=SLACK)


def test_every_scheduler_has_its_order_measured() -> None:
    assert {case[0] for case in (*FLOWS, *LAWS)} == set(SCHEDULERS) - {"lcm", "score_vp"}


@pytest.mark.parametrize("n", [1, 2, 7])
def test_consistency_function_gives_the_data(n: int) -> None:
    """LCM follows no flow. Given where the flow ends, it draws from the data in any number of steps."""
    plan = plan_from_config({"timestep_scaling": 1e9}, n, name="lcm")  # of which no step is so near that it counts as 0

    def end(x: Floats, alpha: float, sigma: float) -> Floats:
        return 0.7 + WIDTHS * (x - alpha * 0.7) / np.hypot(alpha * WIDTHS, sigma)

    first = np.hypot(plan.alpha[0] * WIDTHS, plan.sigma[0])
    *_, (_, mean, units) = law(plan, plan.alpha[0] * np.full(6, 0.7), first, end)
    np.testing.assert_allclose(mean, 0.7, rtol=1e-12)
    np.testing.assert_allclose((units**2).sum(0), WIDTHS**2, rtol=1e-12)


# A network that knows the one true x0. Nothing is left then but alpha x0 + sigma eps.
