"""Requests share the network, row by row, and nothing else: their pictures are those that they give alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ldmrt.runtime import SCHEDULERS, Plan, plan_from_config, sample
from ldmrt.runtime.samplers.guidance import Guidance, classifier_free
from ldmrt.runtime.samplers.noise.counter import FIRST, noise
from ldmrt.runtime.samplers.workspace import Workspace

CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
CHANGES: list[dict[str, Any]] = [{}, {"clip_sample": True}, {"thresholding": True}, {"prediction_type": "v_prediction"}]
SHAPE = (2, 3, 5)
Floats = NDArray[Any]  # float32


def network(x: Floats, t: Floats, context: Floats) -> Floats:
    """Every row has its own time and context. Sums, products and quotients alone: they are rounded in one way,
    wherever in an array they stand, so that equal rows are equal to the bit.
    """
    y = x * (1 + t / 1000)[:, None, None, None] + context[:, None, None, None] * np.roll(x, 1, axis=-1)
    return y / (1 + np.abs(y))


@dataclass(frozen=True)
class Wish:
    """A request: its plan, its seeds and its guidance; and the tick at which it comes in."""

    plan: Plan
    seeds: tuple[int, ...]
    scale: float
    joins: int

    @property
    def guidance(self) -> Guidance:
        return classifier_free(len(self.seeds), self.scale)

    @property
    def context(self) -> Floats:
        """One a row of the network: negative prompts first, where there is guidance."""
        own = np.array(self.seeds, np.float32) / 10
        return own if self.scale == 1 else np.concatenate([np.full_like(own, -0.3), own])

    @property
    def first(self) -> Floats:
        return noise(self.seeds, FIRST, SHAPE) * np.float32(self.plan.prior_scale)

    def drawn(self, row: int) -> Floats:
        return noise(self.seeds, row + 1, SHAPE)

    def alone(self) -> Floats:
        guidance, context = self.guidance, self.context

        def model(x: Floats, t: float) -> Floats:
            return guidance.combine(network(x[guidance.idx], np.full(len(guidance.idx), t, np.float32), context))

        return sample(self.plan, self.first, model, self.drawn)


def together(wishes: list[Wish]) -> list[Floats]:
    """All wishes with one call of the network a tick, as long as one is not done."""
    runs = [Workspace(wish.plan, wish.first) for wish in wishes]
    rows, tick = [0] * len(wishes), 0
    while any(row < wish.plan.rows for row, wish in zip(rows, wishes, strict=True)):
        here = [i for i, wish in enumerate(wishes) if wish.joins <= tick and rows[i] < wish.plan.rows]
        tick += 1
        if not here:
            continue
        guidances = [wishes[i].guidance for i in here]
        out = network(
            np.concatenate([runs[i].x[g.idx] for i, g in zip(here, guidances, strict=True)]),
            np.concatenate(
                [
                    np.full(len(g.idx), wishes[i].plan.t[rows[i]], np.float32)
                    for i, g in zip(here, guidances, strict=True)
                ]
            ),
            np.concatenate([wishes[i].context for i in here]),
        )
        parts = np.split(out, np.cumsum([len(g.idx) for g in guidances])[:-1])
        for i, g, part in zip(here, guidances, parts, strict=True):
            plan, row = wishes[i].plan, rows[i]
            z = wishes[i].drawn(row) if plan.draws(row) else None
            runs[i].move(row, g.combine(part), z)
            rows[i] += 1
    return [run.x for run in runs]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    name = draw(st.sampled_from(sorted(SCHEDULERS)))
    change = draw(st.sampled_from(CHANGES))
    if name == "ipndm":
        change = {}
    eta = draw(st.sampled_from([None, 0.0, 0.5, 1.0])) if SCHEDULERS[name].eta is not None else None
    steps = draw(st.integers(4, 9))  # Runge-Kutta needs four
    strength = draw(st.sampled_from([1.0, 0.6]))
    return plan_from_config({**CONFIG, **change}, steps, name=name, eta=eta, strength=strength)


@st.composite
def crowds(draw: st.DrawFn) -> list[Wish]:
    """Two or three requests, of which some may share a plan."""
    shared = draw(st.lists(plans(), min_size=1, max_size=3))
    wish = st.builds(
        Wish,
        plan=st.sampled_from(shared),
        seeds=st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple),
        scale=st.sampled_from([1.0, 3.0, 7.5]),
        joins=st.integers(0, 5),
    )
    return draw(st.lists(wish, min_size=2, max_size=3))


@settings(max_examples=150, deadline=None)
@given(wishes=crowds())
def test_interleaved_requests_are_those_alone(wishes: list[Wish]) -> None:
    before = [one.alone() for one in wishes]
    for found, one, first in zip(together(wishes), wishes, before, strict=True):
        np.testing.assert_array_equal(found, first)
        np.testing.assert_array_equal(one.alone(), first)


def test_every_scheduler_shares_a_batch_with_every_other() -> None:
    """Of as many lengths and kinds of state as there are, in one batch."""
    wishes = [
        Wish(plan_from_config(CONFIG, 4 + i % 5, name=name), (i,), (1.0, 5.0)[i % 2], i % 3)
        for i, name in enumerate(SCHEDULERS)
    ]
    assert len({wish.plan.rows for wish in wishes}) > 5
    assert len({wish.plan.table.shape[1] for wish in wishes}) > 3
    for found, one in zip(together(wishes), wishes, strict=True):
        np.testing.assert_array_equal(found, one.alone())
        assert np.isfinite(found).all()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) - {"ipndm"}))
def test_pictures_of_a_request_are_those_alone(name: str, change: dict[str, Any]) -> None:
    """In float64, to its roundings, times ten for each of the rows: a matrix product may sum in another order where it
    has more columns.
    """
    plan = plan_from_config({**CONFIG, **change}, 6, name=name)

    def run(seeds: list[int]) -> Floats:
        def model(x: Floats, t: float) -> Floats:
            return network(x, np.full(len(x), t), np.array(seeds) / 10)

        return sample(plan, noise(seeds, FIRST, SHAPE).astype(float), model, lambda row: noise(seeds, row + 1, SHAPE))

    many = run([1, 2, 3])
    near = 2.0**-52 * 10 * plan.rows * np.abs(many).max() / plan.alpha.min()  # as x0 is read: over alpha
    np.testing.assert_allclose(many, np.concatenate([run([seed]) for seed in (1, 2, 3)]), rtol=0, atol=near)


def joint(guidances: list[Guidance], sizes: list[int]) -> Guidance:
    """The guidance of all requests at once: their weights on the diagonal."""
    weights = np.zeros((sum(sizes), sum(len(g.idx) for g in guidances)), np.float32)
    idx, row, column = [], 0, 0
    for g, size in zip(guidances, sizes, strict=True):
        weights[row : row + size, column : column + len(g.idx)] = g.matrix
        idx.append(g.idx + row)
        row, column = row + size, column + len(g.idx)
    return Guidance(np.concatenate(idx), weights)


@settings(max_examples=50, deadline=None)
@given(requests=st.lists(st.tuples(st.integers(1, 3), st.sampled_from([1.0, 3.0, 7.5])), min_size=1, max_size=4))
def test_guidance_of_many_requests_is_one_matrix(requests: list[tuple[int, float]]) -> None:
    guidances, sizes = [classifier_free(*request) for request in requests], [size for size, _ in requests]
    x = noise(range(sum(sizes)), FIRST, SHAPE)
    both = joint(guidances, sizes)
    out = network(x[both.idx], np.full(len(both.idx), 7, np.float32), np.arange(len(both.idx), dtype=np.float32))
    parts = np.split(out, np.cumsum([len(g.idx) for g in guidances])[:-1])
    own = np.split(x, np.cumsum(sizes)[:-1])
    expected = np.concatenate([g.combine(part) for g, part in zip(guidances, parts, strict=True)])
    # two products and their sum, each rounded once, in whatever order; the rest are zeros
    largest = np.abs(both.weights) @ np.abs(out).reshape(len(out), -1)
    assert (np.abs(both.combine(out) - expected).reshape(len(x), -1) <= 2 * 2 * 2.0**-24 * largest).all()
    for g, mine, rows in zip(
        guidances, own, np.split(both.idx, np.cumsum([len(g.idx) for g in guidances])[:-1]), strict=True
    ):
        np.testing.assert_array_equal(mine[g.idx], x[rows])
