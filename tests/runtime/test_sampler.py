"""The rows of a plan and the loop that runs them, against what is known without any other library."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ldmrt.runtime import SCHEDULERS, LdmrtError, Plan, plan_from_config, sample, steps
from ldmrt.runtime.sampler import D0, D1, S, X, Z, dpmpp_2m, euler, read
from ldmrt.runtime.schedule import Nodes

CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
SHAPE = (2, 3, 4, 5)
Array = NDArray[Any]


def normal(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(SHAPE, dtype=np.float32)


def plan(name: str, rows: int = 10, **change: Any) -> Plan:
    return plan_from_config({**CONFIG, **change}, rows, name=name)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("rows", [1, 2, 10])
def test_network_that_knows_the_picture_gives_it(name: str, prediction: str, rows: int) -> None:
    made, x0 = plan(name, rows, prediction_type=prediction), normal(0)
    now = iter(range(rows))

    def network(x: Array, t: float) -> Array:
        alpha, sigma = made.alpha[i := next(now)], made.sigma[i]
        eps = (x - alpha * x0) / sigma
        return {"epsilon": eps, "v_prediction": alpha * eps - sigma * x0, "sample": x0}[prediction]

    found = sample(made, normal(1), network, normal)
    # exact but for the rounding of the last x and m, some units large, read as x0 over alpha
    np.testing.assert_allclose(found, x0, atol=16 * 2.0**-24 / made.alpha[-1])


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_row_leads_from_one_noise_level_to_the_next(name: str, eta: float) -> None:
    """Where the network is right, alpha x0 + sigma eps becomes alpha' x0 + sigma' eps', eps' of unit variance."""
    if eta and name == "dpmpp_2m":
        with pytest.raises(LdmrtError, match="draws no noise"):
            plan_from_config(CONFIG, 20, name=name, eta=eta)
        return
    made = plan_from_config({**CONFIG, "set_alpha_to_one": True}, 20, name=name, eta=eta)
    row = made.table[:, 0]
    to_alpha, to_sigma = np.append(made.alpha[1:], 1.0), np.append(made.sigma[1:], 0.0)
    np.testing.assert_allclose(row[:, X] * made.alpha + row[:, D0:Z].sum(axis=1), to_alpha, atol=1e-12)
    np.testing.assert_allclose(np.hypot(row[:, X] * made.sigma, row[:, Z]), to_sigma, atol=1e-12)
    assert [made.draws(i) for i in range(20)] == [bool(z) for z in row[:, Z]]
    assert (row[:-1, Z] > 0).all() == (eta > 0 and name != "dpmpp_2m")
    assert not made.table[:, S].any()  # these samplers save nothing


def uneven(rows: int) -> tuple[NDArray[np.float64], Nodes]:
    """A grid of short and long steps between two levels: lambda = log(alpha / sigma), and its nodes."""
    level = np.cumsum([0.0, *([1.0, 2.0] * (rows // 2))])
    level = 6.0 * level / level[-1] - 3.0
    alpha = 1 / np.sqrt(1 + np.exp(-2 * level))
    sigma = np.exp(-level) * alpha
    return level, Nodes(np.arange(rows) * 1.0, alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])


def flow_error(rows: int, solver: str) -> float:
    """Of the probability flow of data of variance 1/4: along it, x over the root of its own variance is constant."""
    _, nodes = uneven(rows)
    spread = np.hypot(nodes.alpha / 2, nodes.sigma)
    table = euler(nodes, 0.0) if solver == "euler" else dpmpp_2m(nodes, first_order_final=False)
    made = Plan(nodes.t, read("epsilon", nodes), table, nodes.alpha, nodes.sigma)
    x = np.full((1, 1, 1, 1), spread[0], np.float32)
    found = sample(made, x, lambda x, t: x * np.float32(nodes.sigma[int(t)] / spread[int(t)] ** 2))
    return abs(float(found[0, 0, 0, 0]) / np.hypot(nodes.to_alpha[-1] / 2, nodes.to_sigma[-1]) - 1.0)


def test_second_order_row_looks_at_the_middle_of_its_step() -> None:
    """It extrapolates x0 from two nodes there: exact where x0 is linear in lambda."""
    level, nodes = uneven(8)
    table = dpmpp_2m(nodes, first_order_final=False)[1:, 0]
    seen = (table[:, D0] * level[1:-1] + table[:, D1] * level[:-2]) / (table[:, D0] + table[:, D1])
    np.testing.assert_allclose(seen, (level[1:-1] + level[2:]) / 2, atol=1e-12)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("dpmpp_2m", 2)])
def test_order_of_convergence(solver: str, order: int) -> None:
    errors = [flow_error(rows, solver) for rows in (20, 40, 80)]  # at 80 still far above float32's rounding
    slopes = [np.log2(a / b) for a, b in pairwise(errors)]
    np.testing.assert_allclose(slopes, order, atol=0.2)  # the next term of the expansion, halved each time


def test_states_are_rows_and_do_not_share_memory() -> None:
    made = plan("dpmpp_2m", 6)
    kept = list(steps(made, normal(0), lambda x, t: np.tanh(x)))
    assert [(state.row, state.rows) for state in kept] == [(i, 6) for i in range(6)]
    arrays = [array for state in kept for array in (state.x, state.x0)]
    assert {(a.shape, a.dtype) for a in arrays} == {(SHAPE, np.dtype(np.float32))}
    assert not any(np.shares_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i])
    for state in steps(made, normal(0), lambda x, t: np.tanh(x)):
        np.testing.assert_array_equal(state.x, kept[state.row].x)
        state.x[:] = state.x0[:] = np.nan  # a caller's own copy


def test_state_shows_what_the_network_said() -> None:
    made = plan("ddim", 3, prediction_type="sample")
    for state in steps(made, normal(0), lambda x, t: np.full_like(x, t)):
        assert (state.x0 == made.t[state.row]).all()


def test_network_and_first_latents_are_left_alone() -> None:
    first, seen = normal(0), []
    sample(plan("euler", 4), first, lambda x, t: seen.append((x.dtype, t)) or x)
    np.testing.assert_array_equal(first, normal(0))
    assert seen == [(np.dtype(np.float32), float(t)) for t in plan("euler", 4).t]


@pytest.mark.parametrize("name", ["ddpm", "euler_a"])
def test_plan_that_draws_needs_noise(name: str) -> None:
    with pytest.raises(LdmrtError, match=r"draws noise; expected noise\(row\)"):
        sample(plan(name), normal(0), lambda x, t: x)
    asked: list[int] = []
    sample(plan(name), normal(0), lambda x, t: x, lambda row: asked.append(row) or normal(row))
    assert asked == list(range(9))  # the last row ends without noise


def test_last_state_is_the_sample() -> None:
    for name in SCHEDULERS:
        kept = list(steps(plan(name, 5), normal(0), lambda x, t: np.tanh(x), normal))
        np.testing.assert_array_equal(kept[-1].x, sample(plan(name, 5), normal(0), lambda x, t: np.tanh(x), normal))
