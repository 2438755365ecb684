"""The plan and the loop that runs it, and its rows against the papers' algorithms written plainly."""

import json
import math
import re
import tracemalloc
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ldmrt.runtime import SCHEDULERS, LdmrtError, Plan, plan_from_config, sample, steps

CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
SHAPE = (2, 3, 4, 5)
U = 2.0**-24  # what rounding to float32 changes, relatively
Array = NDArray[Any]
Network = Callable[[Array, float], Array]


def normal(seed: int, shape: tuple[int, ...] = SHAPE) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def normal64(seed: int, shape: tuple[int, ...] = SHAPE) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal(shape)


def plan(name: str, rows: int = 6, **change: Any) -> Plan:
    return plan_from_config({**CONFIG, **change}, rows, name=name)


def tanh(x: Array, t: float) -> Array:
    return np.tanh(x * (1 + t / 1000))


# The plan as a value


def same(a: Plan, b: Plan) -> None:
    for field in fields(Plan):
        one, other = getattr(a, field.name), getattr(b, field.name)
        assert type(one) is type(other), field.name
        if isinstance(one, np.ndarray):
            assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes()), field.name
        else:
            assert one == other, field.name


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, {}) for name in SCHEDULERS),
        ("ddim", {"clip_sample": True}),
        ("dpmpp_2m", {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 3.0}),
        ("ddpm", {"variance_type": "learned_range"}),
        ("ddpm", {"variance_type": "learned"}),
    ],
)
def test_saved_plan_is_the_same_to_the_bit(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    made = plan(name, 7, **change)
    made.save(tmp_path / "plan.json")
    same(made, Plan.load(tmp_path / "plan.json"))


def test_saved_plan_keeps_none_and_tuples(tmp_path: Path) -> None:
    made = plan("dpmpp_2m", thresholding=True)
    made.save(tmp_path / "plan.json")
    found = Plan.load(tmp_path / "plan.json")
    assert (found.clip, found.spread, found.threshold) == (None, None, (0.995, 1.0))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_plan_is_refused(tmp_path: Path, share: float) -> None:
    plan("heun", 3).save(tmp_path / "plan.json")
    content = (tmp_path / "plan.json").read_bytes()
    (tmp_path / "plan.json").write_bytes(content[: int(share * len(content))])
    with pytest.raises(LdmrtError, match=r"plan: .*plan\.json cannot be read; expected what Plan\.save wrote"):
        Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize("harm", ["short", "word", "none", "flat"])
@pytest.mark.parametrize("key", ["t", "alpha", "sigma", "read", "table", "spread"])
def test_plan_whose_arrays_do_not_fit_is_refused(key: str, harm: str, tmp_path: Path) -> None:
    plan("ddpm", 3, variance_type="learned_range").save(tmp_path / "plan.json")
    state = json.loads((tmp_path / "plan.json").read_text())
    state[key] = {
        "short": state[key][:-1],
        "word": ["much", *state[key][1:]],
        "none": [None, *state[key][1:]],
        "flat": np.ravel(state[key]).tolist() * 2,
    }[harm]
    (tmp_path / "plan.json").write_text(json.dumps(state))
    with pytest.raises(LdmrtError, match="cannot be read"):
        Plan.load(tmp_path / "plan.json")


FOREIGN = {
    "scheduler_config": json.dumps(CONFIG).encode(),
    "list": b"[]",
    "number": b"3",
    "null": b"null",
    "bytes": b"\xff\xfe\x00",
    "one key": b'{"threshold": null}',
    "key too many": b'{"t": [], "alpha": [], "sigma": [], "read": [], "table": [], "threshold": null, "colour": "red"}',
    "ragged": b'{"t": [1.0, [2.0]], "alpha": [], "sigma": [], "read": [], "table": [], "threshold": null}',
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_file_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(FOREIGN[kind])
    with pytest.raises(LdmrtError, match="cannot be read"):
        Plan.load(tmp_path / "plan.json")


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(LdmrtError, match="cannot be read"):
            Plan.load(path)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_printed_plan_shows_every_coefficient(name: str) -> None:
    made = plan(name, 5)
    head, *lines = str(made).split("\n")
    assert head.split() == ["row", "t", "alpha", "sigma"]
    assert len(lines) == made.rows
    registers = ["m", "x", *(f"s{i}" for i in range(1, made.table.shape[1])), "z", "x0"]
    for row, line in enumerate(lines):
        number, t, alpha, sigma = line.split()[:4]
        assert int(number) == row
        # printed with 3 and 5 places
        np.testing.assert_allclose(float(t), made.t[row], atol=0.0005)
        np.testing.assert_allclose([float(alpha), float(sigma)], [made.alpha[row], made.sigma[row]], atol=5e-6)
        read = np.zeros_like(made.table[row])
        for output, terms in re.findall(r"(\w+)' =((?: [+-]\S+ \w+)+)", line):
            for weight, register in re.findall(r"(\S+) (\w+)", terms):
                read[registers.index(output) - 1, registers.index(register)] = float(weight)
        np.testing.assert_allclose(read, made.table[row], rtol=5e-6)  # 6 digits


@pytest.mark.parametrize("name", SCHEDULERS)
def test_noise_is_asked_for_where_the_plan_draws_it(name: str) -> None:
    made, asked = plan(name), []

    def noise(row: int) -> Array:
        asked.append(row)
        return normal(row)

    sample(made, normal(0), tanh, noise)
    assert asked == [row for row in range(made.rows) if made.draws(row)]
    assert asked == [row for row in range(made.rows) if made.table[row, :, -2].any()]
    assert bool(asked) == (name in ("ddpm", "lcm", "tcd", "dpmpp_sde") or name.endswith(("_a", "_sde")))
    if asked:
        with pytest.raises(LdmrtError, match=r"draws noise; expected noise\(row\)"):
            sample(made, normal(0), tanh)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_first_latents_have_the_variance_of_the_first_node(name: str, spacing: str) -> None:
    """1 for data of unit variance. Diffusers leaves the data out where its samplers with levels start from the last."""
    made = plan(name, timestep_spacing=spacing)
    late = spacing != "leading" and name in ("lms", "euler", "euler_a", "heun", "dpm2", "dpm2_a", "dpmpp_sde")
    data = 0.0 if late else made.alpha[0]
    np.testing.assert_allclose(made.prior_scale, math.hypot(data, made.sigma[0]), rtol=1e-14)  # roundings of float64


# The loop


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


@pytest.mark.parametrize("name", SCHEDULERS)
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
        row = made.folded[state.row]
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
        inputs = [m, x, *saved, normal64(state.row), x0]
        x, *saved = (sum(w * one for w, one in zip(row, inputs, strict=True)) for row in made.table[state.row])
        # roundings of float64, of x0 over alpha
        np.testing.assert_allclose(state.x, x, rtol=0, atol=1e-14 * np.abs(x).max() / made.alpha[made.alpha > 0].min())


def test_no_row_allocates_more_than_its_result() -> None:
    out = np.zeros((1, 4, 64, 64), np.float32)  # the network's answer, made beforehand

    def most(rows: int) -> tuple[int, int]:
        made = plan("dpmpp_2m", rows)
        run = steps(made, np.ones_like(out), lambda x, t: out)
        next(run)  # what a run makes once: registers and matrices
        tracemalloc.start()
        highest = 0
        for _ in range(rows - 1):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            _ = next(run)
            highest = max(highest, tracemalloc.get_traced_memory()[1] - before)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return highest, held

    few, many = most(5), most(200)
    # 4 KiB: the state, views and generator frames; registers would be a multiple of `out`
    assert few[0] <= out.nbytes + 4096
    assert many[0] <= out.nbytes + 4096
    assert abs(many[1] - few[1]) <= 4096  # one state is held, not one a row


# What is not linear


@pytest.mark.parametrize("name", SCHEDULERS)
def test_hook_that_never_acts_changes_nothing(name: str) -> None:
    """A plan with hooks computes x0 on its own, one without folds it into the row."""
    made = plan(name)
    assert not made.hooked
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


# Rows against the papers, in float64; 1e-12: some roundings, over the first alpha of 1 / 15


def nodes(made: Plan) -> tuple[Array, Array]:
    """alpha and sigma, the clean end with them."""
    return np.append(made.alpha, 1.0), np.append(made.sigma, 0.0)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_is_equation_12(eta: float) -> None:
    made = plan_from_config({**CONFIG, "set_alpha_to_one": True}, 8, name="ddim", eta=eta)
    x = normal64(0)
    abar = nodes(made)[0] ** 2
    for i, state in enumerate(steps(made, x, tanh, normal64)):
        a, b, eps = abar[i], abar[i + 1], tanh(x, made.t[i])
        drawn = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
        x = math.sqrt(b) * (x - math.sqrt(1 - a) * eps) / math.sqrt(a) + math.sqrt(max(0, 1 - b - drawn**2)) * eps
        x = x + drawn * normal64(i)
        np.testing.assert_allclose(state.x, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large", "learned", "learned_range"])
def test_ddpm_is_equation_7(kind: str) -> None:
    """Ho et al. 2020; a learned variance by Nichol & Dhariwal 2021, equation 15."""
    made, x, says = plan("ddpm", 5, variance_type=kind), normal64(0), normal64(1)
    variance = np.abs(normal64(2)) if kind == "learned" else np.clip(normal64(2), -1, 1)
    out = np.concatenate([says, variance], axis=1) if made.learned else says
    assert made.learned == (kind if "learned" in kind else "")
    abar = nodes(made)[0] ** 2
    for i, state in enumerate(steps(made, x, lambda x, t: out, normal64)):
        a, b = abar[i], abar[i + 1]
        beta = 1 - a / b
        small = max((1 - b) / (1 - a) * beta, 1e-20)
        share = (variance + 1) / 2
        drawn = {
            "fixed_small": small,
            "fixed_large": beta,
            "learned": variance,
            "learned_range": np.exp(share * np.log(beta) + (1 - share) * np.log(small)),
        }[kind]
        x0 = (x - math.sqrt(1 - a) * says) / math.sqrt(a)
        x = (math.sqrt(b) * beta * x0 + math.sqrt(a / b) * (1 - b) * x) / (1 - a)
        x = x + np.sqrt(drawn) * normal64(i) * (made.t[i] > 0)
        np.testing.assert_allclose(state.x, x, rtol=0, atol=1e-12)


def test_dpmpp_2m_is_algorithm_2() -> None:
    """Lu et al. 2022, arXiv:2211.01095: r is the last step by this one; the last of few steps is of first order."""
    made, x = plan("dpmpp_2m", 20), normal64(0)
    alpha, sigma = nodes(made)
    with np.errstate(divide="ignore"):
        lam = np.log(alpha / sigma)
    last = None
    for i, state in enumerate(steps(made, x, tanh)):
        h, data = lam[i + 1] - lam[i], (x - sigma[i] * tanh(x, made.t[i])) / alpha[i]
        mixed = data
        if 0 < i < 19:
            r = (lam[i] - lam[i - 1]) / h
            mixed = (1 + 1 / (2 * r)) * data - 1 / (2 * r) * last
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * math.expm1(-h) * mixed
        last = data
        np.testing.assert_allclose(state.x, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["pndm", "plms"])
def test_pndm_is_algorithm_2(name: str) -> None:
    """Liu et al. 2022: three Runge-Kutta steps, or as in diffusers one of Heun; then Adams and Bashforth's formula."""
    made, x = plan(name, 10), normal64(0)
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    expected: list[Array] = []
    seen: list[int] = []
    past: list[Array] = []

    def says(x: Array, t: int) -> Array:
        seen.append(t)
        return tanh(x, t)

    def transfer(x: Array, eps: Array, t: int, to: int) -> Array:  # equation 11
        a, b = abar[t], abar[max(to, 0)]
        expected.append(math.sqrt(b / a) * (x - math.sqrt(1 - a) * eps) + math.sqrt(1 - b) * eps)
        return expected[-1]

    for t in range(900, -1, -100):
        past = [says(x, t), *past[:3]]
        e1, to = past[0], t - 100
        if name == "pndm" and t > 600:
            e2 = says(transfer(x, e1, t, t - 50), t - 50)
            e3 = says(transfer(x, e2, t, t - 50), t - 50)
            e4 = says(transfer(x, e3, t, to), to)
            x = transfer(x, (e1 + 2 * e2 + 2 * e3 + e4) / 6, t, to)
        elif t == 900:
            x = transfer(x, (e1 + says(transfer(x, e1, t, to), to)) / 2, t, to)
        else:
            weights = {2: [3.0, -1.0], 3: [23 / 6, -16 / 6, 5 / 6], 4: [55 / 12, -59 / 12, 37 / 12, -9 / 12]}[len(past)]
            x = transfer(x, np.tensordot(weights, past, axes=1) / 2, t, to)
    assert made.t.tolist() == seen
    found = [state.x for state in steps(made, normal64(0), tanh)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def karras_walk(
    made: Plan, network: Network, x: Array, *, second: bool, churn: Callable[[float], float], draw: Any
) -> list[Array]:
    """Karras et al. 2022, algorithm 2 (algorithm 1 where nothing is churned), on latents that are not scaled. As in
    diffusers the network sees those from before the noise, and says the slope.
    """
    levels = np.append(np.unique(made.sigma / made.alpha)[::-1], 0.0)
    times = [made.t[np.flatnonzero(np.isclose(made.sigma / made.alpha, level))[0]] for level in levels[:-1]]

    def slope(x: Array, level: float, t: float) -> Array:
        return network(x / math.hypot(1, level), t)

    x, out = x * math.hypot(1, levels[0]), []
    for i, (level, to) in enumerate(pairwise(levels)):
        d = slope(x, level, times[i])
        raised = level * (1 + churn(level))
        x = x + math.sqrt(raised**2 - level**2) * draw(2 * i if second else i)
        ahead = x + (to - raised) * d
        if second and to:
            out.append(ahead / math.hypot(1, to))
            ahead = x + (to - raised) * (d + slope(ahead, to, times[i + 1])) / 2
        x = ahead
        out.append(x / math.hypot(1, to))
    return out


CHURN: dict[str, Any] = {"s_churn": 4.0, "s_tmin": 0.5, "s_tmax": 5.0, "s_noise": 1.01}


@pytest.mark.parametrize("churn", [{}, CHURN, {**CHURN, "s_churn": 1e9}])
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_euler_and_heun_are_karras_algorithms(name: str, churn: dict[str, Any]) -> None:
    made, first = plan(name, 10, **churn), normal64(0)
    gamma = min(churn.get("s_churn", 0.0) / 10, math.sqrt(2) - 1)

    def share(level: float) -> float:
        return gamma if churn and churn["s_tmin"] <= level <= churn["s_tmax"] else 0.0

    def draw(row: int) -> Array:
        return churn.get("s_noise", 1.0) * normal64(row)

    expected = karras_walk(made, tanh, first, second=name == "heun", churn=share, draw=draw)
    found = [state.x for state in steps(made, first, tanh, normal64)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["euler", "heun", "edm_euler"])
def test_churn_draws_within_its_range_alone(name: str) -> None:
    made, still = plan(name, 12, **CHURN), plan(name, 12)
    level = made.sigma / made.alpha
    drawn = level[[made.draws(row) for row in range(made.rows)]].tolist()
    within = {one for one in level.tolist() if CHURN["s_tmin"] <= one <= CHURN["s_tmax"]}
    assert 2 < len(within) < 10
    assert sorted(drawn) == sorted(within)  # once a step, of however many rows
    for nothing in ({**CHURN, "s_churn": 0.0}, {**CHURN, "s_tmin": 1e9, "s_tmax": 2e9}):
        other = plan(name, 12, **nothing)
        assert not any(other.draws(row) for row in range(other.rows))
        np.testing.assert_allclose(other.folded, still.folded, rtol=1e-12, atol=1e-12)  # roundings of float64


@pytest.mark.parametrize(
    ("name", "prediction", "lowest"),
    # A network that predicts anything but the picture has not seen the noise: the last step must be one without.
    [*((name, "epsilon", 0.5) for name in ("euler", "heun", "edm_euler")), ("euler", "sample", 0.0)],
)
def test_churned_sampler_lands_on_the_picture(name: str, prediction: str, lowest: float) -> None:
    made = plan(name, 12, prediction_type=prediction, **{**CHURN, "s_tmin": lowest})
    x0, rows = normal64(3), iter(range(made.rows))

    def network(x: Array, t: float) -> Array:
        kx, km = made.read[next(rows)]
        return (x0 - kx * x) / km

    np.testing.assert_allclose(sample(made, normal64(0), network, normal64), x0, rtol=0, atol=1e-12)
