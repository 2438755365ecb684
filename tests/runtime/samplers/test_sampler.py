"""The loop that runs a plan: what it hands out, asks for and allocates, and what in it is not linear."""

import math
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ldmrt.runtime import SCHEDULERS, LdmrtError, plan_from_config, sample, steps
from ldmrt.runtime.samplers.workspace import assign_slots

from ...support.plans import CONFIG, SHAPE, Array, normal, normal64, plan, tanh

U = 2.0**-24  # what rounding to float32 changes, relatively


@pytest.mark.parametrize("name", SCHEDULERS)
def test_noise_is_asked_for_where_the_plan_draws_it(name: str) -> None:
    made, asked = plan(name), []

    def noise(row: int) -> Array:
        asked.append(row)
        return normal(row)

    sample(made, normal(0), tanh, noise)
    assert asked == [row for row in range(made.rows) if made.draws(row)]
    assert asked == [row for row in range(made.rows) if made.table[row, :, -2].any()]
    drawing = ("ddpm", "lcm", "tcd", "dpmpp_sde", "score_ve", "score_vp")
    assert bool(asked) == (name in drawing or name.endswith(("_a", "_sde")))
    if asked:
        with pytest.raises(LdmrtError, match=r"draws noise; expected noise\(row\)"):
            sample(made, normal(0), tanh)


def test_states_number_the_rows_and_keep_their_own_arrays() -> None:
    made = plan("heun")
    kept = list(steps(made, normal(0), tanh))
    assert [(state.row, state.rows) for state in kept] == [(row, made.rows) for row in range(made.rows)]
    assert not any(np.shares_memory(a.x, b.x) for i, a in enumerate(kept) for b in kept[:i])
    for state in steps(made, normal(0), tanh):
        np.testing.assert_array_equal(state.x, kept[state.row].x)
        state.x[:] = np.nan  # a caller's own
    np.testing.assert_array_equal(kept[-1].x, sample(made, normal(0), tanh))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_network_sees_the_latents_of_the_row_before(name: str) -> None:
    made, seen, first = plan(name), [], normal(0)

    def network(x: Array, t: float) -> Array:
        seen.append((x.copy(), t))
        return tanh(x, t)

    states = list(steps(made, first, network, normal))
    np.testing.assert_array_equal(first, normal(0))  # left alone
    assert [t for _, t in seen] == made.t.tolist()
    assert all(type(t) is float for _, t in seen)
    for (x, _), before in zip(seen, [first, *(state.x for state in states)], strict=False):
        np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(("given", "state"), [("f4", "f4"), ("f2", "f4"), ("f8", "f8")])
def test_state_is_float32_unless_the_caller_has_float64(given: str, state: str) -> None:
    seen = set()

    def network(x: Array, t: float) -> Array:
        seen.add(x.dtype)
        return tanh(x, t)

    for init in (None, normal(1).astype(given)):
        states = list(steps(plan("ddpm"), normal(0).astype(given), network, normal, init))
        assert {one.x.dtype for one in states} | {states[-1].x0.dtype} | seen == {np.dtype(state)}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_starting_from_a_picture_is_starting_from_its_noised_latents(name: str) -> None:
    made = plan_from_config(CONFIG, 8, name=name, strength=0.5)
    picture, eps = normal(0), normal(1)
    noised = made.noised(picture, eps)
    # twice rounded, of two terms
    np.testing.assert_allclose(noised, made.alpha[0] * picture + made.sigma[0] * eps, atol=2 * U * np.abs(noised).max())
    np.testing.assert_array_equal(sample(made, eps, tanh, normal, init=picture), sample(made, noised, tanh, normal))


def test_generator_can_be_left_and_two_do_not_meet() -> None:
    made = plan("dpmpp_2m")
    alone = [state.x for state in steps(made, normal(0), tanh)]
    left = steps(made, normal(0), tanh)
    next(left)
    one, other = steps(made, normal(0), tanh), steps(made, normal(1), tanh)
    for row in range(made.rows):
        np.testing.assert_array_equal(next(one).x, alone[row])
        next(other)
    left.close()
    with pytest.raises(StopIteration):
        next(left)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_3m", "unipc", "ddpm"])
def test_preview_is_what_the_network_said(name: str, prediction: str) -> None:
    made, x = plan(name, prediction_type=prediction), normal64(0)
    old = None
    for state in steps(made, x, tanh, normal64):
        a, s, m = made.alpha[state.row], made.sigma[state.row], tanh(x, made.t[state.row])
        expected = {"epsilon": (x - s * m) / a, "v_prediction": a * x - s * m, "sample": m}[prediction]
        np.testing.assert_allclose(state.x0, expected, rtol=0, atol=1e-14 / a)  # roundings of float64, over alpha
        if old is not None:
            with pytest.raises(LdmrtError, match=rf"x0 of row {old.row} is gone; expected asking before the next row"):
                _ = old.x0
        x, old = state.x, state
    assert old is not None
    np.testing.assert_array_equal(old.x0, old.x0)  # the last one stays


# The network of this test is no score: latents of noise level 1348 would grow by 1348 squared.
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if not name.startswith("score_ve")])
def test_float32_is_within_its_rounding_of_float64(name: str) -> None:
    """The bound is carried along with the runs. A row in float32 adds errors of its own: w + 1 roundings of the sizes
    of its w terms, with those of its coefficients, and one of what goes in from outside, m and z. With m = c x they all
    go on through the same rows as x itself, whose product is known.
    """
    made, c, bound = plan(name, 10), 0.9, 0.0
    first = made.prior_scale * normal64(0)
    exact = [state.x for state in steps(made, first, lambda x, t: c * x, normal64)]
    kept, width = made.table.shape[1], made.table.shape[2] - 1
    largest = np.eye(width)[1] * np.abs(first).max()
    through, own = np.eye(kept)[None], U * largest[None, 1:-1]  # (errors made so far, kept, kept), (errors, kept)
    for state in steps(made, first.astype(np.float32), lambda x, t: np.float32(c) * x, normal64):
        row = made.fused[state.row]
        largest[0] = c * largest[1]
        largest[-1] = np.abs(normal64(state.row)).max() if made.draws(state.row) else 0.0
        outside = 2 * largest * (np.arange(width) == 0) + largest * (np.arange(width) == width - 1)  # c is rounded too
        through = np.concatenate([(row[:, 1:-1] + c * row[:, :1] * np.eye(kept)[0]) @ through, np.eye(kept)[None]])
        own = np.concatenate([own, U * (np.abs(row) @ ((width + 1) * largest + outside))[None]])
        bound = 1.001 * np.einsum("eij,ej->i", np.abs(through), own)[0]  # 1.001: products of two errors
        assert np.abs(state.x - exact[state.row]).max() <= bound
        largest[1:-1] = np.abs(row) @ largest
        largest[1] = np.abs(exact[state.row]).max()  # known better than by its bound
    assert bound < 1e-4  # else it says nothing


@pytest.mark.parametrize("clip", [None, 0.8])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_loop_is_the_product_of_table_and_registers(name: str, clip: float | None) -> None:
    """Written plainly: every register, with its zeros."""
    made, x = replace(plan(name), clip=clip), normal64(0)
    saved = [np.zeros(SHAPE)] * (made.table.shape[1] - 1)
    for state in steps(made, x, tanh, normal64):
        kx, km = made.read[state.row]
        m = tanh(x, made.t[state.row])
        x0 = kx * x + km * m
        x0 = x0 if clip is None else np.clip(x0, -clip, clip)
        z = normal64(state.row)
        if made.langevin is not None and state.row % 2 == 0:  # a correction, of the step size that is the paper's eps
            for image in range(len(x)):
                size = 2 * (0.15 * np.linalg.norm(z[image]) / np.linalg.norm(m[image])) ** 2
                m[image], z[image] = size * m[image], math.sqrt(size) * z[image]
        inputs = [m, x, *saved, z, x0]
        x, *saved = (sum(w * one for w, one in zip(row, inputs, strict=True)) for row in made.table[state.row])
        # roundings of float64, of x0 over alpha
        np.testing.assert_allclose(state.x, x, rtol=0, atol=1e-14 * np.abs(x).max() / made.alpha[made.alpha > 0].min())


@pytest.mark.parametrize("change", [{}, {"clip_sample": True}, {"variance_type": "learned"}], ids=str)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_word_left_in_place_is_the_word_handed_over(name: str, change: dict[str, Any]) -> None:
    made, left = plan(name, **change), []

    def network(x: Array, t: float, into: Array | None) -> Array:
        said = tanh(x, t)
        left.append(into is not None)
        if into is None:
            return said
        into[...] = said
        return into

    def noise(row: int, into: Array) -> Array:
        into[...] = normal(row)
        return into

    expected = [state.x for state in steps(made, normal(0), tanh, normal)]
    found = [state.x for state in steps(made, normal(0), network, noise, in_place=True)]
    np.testing.assert_array_equal(found, expected)
    assert left == [not made.predicts_variance] * made.rows


@pytest.mark.parametrize("name", SCHEDULERS)
def test_no_row_allocates_more_than_its_result(name: str) -> None:
    out = np.zeros((1, 4, 64, 64), np.float32)  # what the network says, and the noise, made beforehand

    def most(rows: int) -> tuple[int, int]:
        made = plan(name, rows)
        run = steps(made, np.ones_like(out), lambda x, t: out, lambda row: out)
        next(run)  # what a run makes once: registers and matrices
        tracemalloc.start()
        highest = 0
        for _ in range(made.rows - 1):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            _ = next(run)
            highest = max(highest, tracemalloc.get_traced_memory()[1] - before)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return highest, held

    few, many = most(5), most(50)
    # 4 KiB: the state, views and generator frames; registers would be a multiple of `out`
    assert few[0] <= out.nbytes + 4096
    assert many[0] <= out.nbytes + 4096
    assert abs(many[1] - few[1]) <= 4096  # one state is held, not one a row


@pytest.mark.parametrize("name", SCHEDULERS)
def test_latents_kept_do_not_grow_with_the_rows(name: str) -> None:
    (_, some), (_, many) = (assign_slots(plan(name, rows)) for rows in (25, 50))
    assert many == some


# What is not linear


@pytest.mark.parametrize("name", SCHEDULERS)
def test_hook_that_never_acts_changes_nothing(name: str) -> None:
    """A plan with hooks computes x0 on its own, one without folds it into the row."""
    made = plan(name)
    assert made.hooked == (name == "score_ve")  # by its corrector
    hooked = replace(made, clip=math.inf)
    assert hooked.hooked
    folded = np.array([state.x for state in steps(made, normal64(0), tanh, normal64)])
    found = np.array([state.x for state in steps(hooked, normal64(0), tanh, normal64)])
    # roundings of float64: x0 is some units over alpha, and each row carries on those of the last
    np.testing.assert_allclose(
        found, folded, rtol=0, atol=1e-13 * np.abs(folded).max() / made.alpha[made.alpha > 0].min()
    )


def slow_threshold(x0: Array, share: float, most: float) -> Array:
    """Saharia et al. 2022, section 2.3, by sorting; the quantile lies between two of them."""
    out = x0.copy()
    for picture in out:
        order = np.sort(np.abs(picture), axis=None)
        place = share * (len(order) - 1)
        low, high = order[math.floor(place)], order[math.ceil(place)]
        bound = min(max(low + (place - math.floor(place)) * (high - low), 1.0), most)
        picture[:] = np.minimum(np.maximum(picture, -bound), bound) / bound
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spread", [0.2, 2.0, 50.0])  # all within 1; some beyond; beyond the maximum
def test_dynamic_threshold_is_that_of_its_slow_twin(spread: float, dtype: Any) -> None:
    change: dict[str, Any] = {"thresholding": True, "dynamic_thresholding_ratio": 0.83, "sample_max_value": 7.0}
    made = plan("ddim", prediction_type="sample", set_alpha_to_one=True, **change)
    says = (normal64(0) * [[[[spread]]], [[[2 * spread]]]]).astype(dtype)
    assert made.threshold == (0.83, 7.0)
    expected = slow_threshold(says.astype(np.float64), 0.83, 7.0)
    assert (np.abs(expected - says).max() > 0.1) == (spread > 1)
    near = {"rtol": 8 * np.finfo(dtype).eps}  # roundings: a quantile between two numbers, and a quotient
    for state in steps(made, normal(1).astype(dtype), lambda x, t: says):
        assert (state.x0.dtype, state.x.dtype) == (dtype, dtype)
        np.testing.assert_allclose(state.x0, expected, **near)
    np.testing.assert_allclose(state.x, expected, **near)  # at sigma 0


def test_clip_holds_x0_and_eps_follows_it_where_the_row_asks() -> None:
    made = plan("ddim", 4, clip_sample=True, clip_sample_range=0.7)
    x, acted = normal64(0), 0
    for state in steps(made, x, lambda x, t: 0.1 * x):
        a, s = made.alpha[state.row], made.sigma[state.row]
        b, r = (np.append(v[state.row + 1 :], end)[0] for v, end in ((made.alpha, 1.0), (made.sigma, 0.0)))
        clipped = np.maximum(np.minimum((x - s * 0.1 * x) / a, 0.7), -0.7)
        # DDIM keeps the network's eps, as diffusers does without use_clipped_model_output
        np.testing.assert_allclose(state.x0, clipped, rtol=0, atol=1e-13)
        np.testing.assert_allclose(state.x, b * clipped + r * 0.1 * x, rtol=0, atol=1e-13)
        x, acted = state.x, acted + (np.abs(clipped) == 0.7).any()
    assert acted >= 2
