"""Streams of other programs: those of torch on a CPU against torch, those of CUDA against what GPUs have printed."""

import math

import numpy as np
import pytest

from ldmrt.runtime import SCHEDULERS, plan_from_config
from ldmrt.runtime.pipeline.denoising.noise_order import OWN_DRAWS
from ldmrt.runtime.samplers.noise.float32 import multiply_add
from ldmrt.runtime.samplers.noise.philox import A1111, TorchCuda, philox
from ldmrt.runtime.samplers.noise.torch_cpu import TorchCpu
from ldmrt.runtime.samplers.registry import find_scheduler

from ....support.exact_diffusers import Theirs

SEEDS = (0, 1, 42, 2**32 - 1, 2**32 + 42, 2**64 - 1)
# Below 16 numbers are drawn one by one; above, in vectors of 16, the last of which may be drawn again.
SHAPES = [*((count,) for count in range(1, 41)), (4, 8, 8), (3, 4, 65, 63), (4, 64, 64)]
# The numbers of real GPUs, to four places, from public text: seed 0 by torch 2.2 (a fused kernel's README), and three
# calls after seed 42 (a report about torch.compile).
PRINTED = {
    0: [
        [-0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797, -0.6229, -0.3284, -1.0745, -0.3631, -1.6711, 2.2655],
    ],
    42: [
        [0.1940, 2.1614, -0.1721, 0.8491, -1.9244, 0.6530, -0.6494, -0.8175, 0.5280, -1.2753],
        [0.1391, -0.1082, -0.7174, 0.7566],
        [-0.5187, 1.2268, 0.6255, -0.9117],
    ],
}
CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon"}
ETAS = {"ddim": 1.0, "tcd": 0.3}
# Every sampler that draws noise in its rows.
DRAWING = [
    name
    for name, scheduler in SCHEDULERS.items()
    if scheduler.class_name not in OWN_DRAWS
    and not scheduler.class_name.startswith(("FlowMatch", "EDM", "IPNDM"))
    and any(plan_from_config(CONFIG, 8, name=name, eta=ETAS.get(name))._draws)
]
# "philox4x32 10" of Random123's kat_vectors: a counter and a key of zeros.
KNOWN = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
# What modules/rng_philox.py of AUTOMATIC1111's web UI, version 1.10, returns for seed 0, then for its next call.
A1111_PRINTED = [
    [-0.9246624, -0.42534396, -2.6438458, 0.14518388, -0.12086651, -0.5797257, -0.6228513, -0.32838714],
    [0.18082589, -0.5522627, 0.9238134, -0.73497033, 1.3799946, 0.8676307, 0.12965593, -0.94064],
]


@pytest.mark.oracle
@pytest.mark.parametrize("seed", SEEDS)
def test_torch_on_a_cpu_is_bit_equal(seed: int) -> None:
    import torch

    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("torch draws by another kernel on this processor")
    theirs, ours = torch.Generator("cpu").manual_seed(seed), TorchCpu(seed)
    for shape in SHAPES:  # one generator, so that each shape begins where the one before has ended
        expected, found = torch.randn(shape, generator=theirs).numpy(), ours.randn(shape)
        assert found.dtype == np.float32
        assert found.tobytes() == expected.tobytes(), shape


def test_a_product_and_a_sum_are_rounded_once() -> None:
    """Against Python's fractions, and on numbers where two roundings give another result."""
    from fractions import Fraction

    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(2000).astype(np.float32) for _ in range(3))
    a[0], b[0], c[0] = 1 + 2**-23, 1 + 2**-22, 2**-60  # a * b is halfway between two float32, but for c
    c[1:1000] *= np.float32(2.0) ** rng.integers(-60, 30, 999).astype(np.float32)
    for one, factor, added, found in zip(a, b, c, multiply_add(a, b, c), strict=True):
        exact = Fraction(float(one)) * Fraction(float(factor)) + Fraction(float(added))
        near = [found, np.nextafter(found, np.float32(-np.inf)), np.nextafter(found, np.float32(np.inf))]
        assert found == min(near, key=lambda value: abs(Fraction(float(value)) - exact))


def test_philox_gives_the_published_words() -> None:
    assert philox(0, 0, 1)[:, 0].tolist() == KNOWN


@pytest.mark.parametrize("seed", PRINTED)
def test_cuda_as_gpus_have_printed_it(seed: int) -> None:
    generator = TorchCuda(seed)
    for call in PRINTED[seed]:
        found = generator.randn((len(call),))
        # they are printed to four places, and a GPU's fast sine and logarithm lose 5e-6 at most
        np.testing.assert_allclose(found, call, rtol=0, atol=0.5e-4 + 5e-6)


def test_a1111_as_it_draws_itself() -> None:
    generator = A1111(0)
    found = [generator.randn((8,)) for _ in range(2)]
    np.testing.assert_array_equal(found[0], np.array(A1111_PRINTED[0], np.float32))
    np.testing.assert_array_equal(found[1], np.array(A1111_PRINTED[1], np.float32))


@pytest.mark.parametrize("kind", [TorchCuda, A1111])
def test_cuda_and_a1111_are_one_stream(kind: type) -> None:
    """The same words, whose numbers are a few roundings of float32 apart: of an angle up to 2 pi, times a radius."""
    exact = A1111(7).randn((4, 64, 64))
    np.testing.assert_allclose(kind(7).randn((4, 64, 64)), exact, rtol=0, atol=6.7 * 2 * math.pi * 2**-24)


class Asked:
    """Noise by row, which writes down the rows that diffusers draws in."""

    def __init__(self, rows: int) -> None:
        self.draws, self.rows = np.random.default_rng(0).standard_normal((rows, 1, 4, 2, 2)), list[int]()

    def __getitem__(self, row: int) -> object:
        self.rows.append(row)
        return self.draws[row]


@pytest.mark.oracle
@pytest.mark.parametrize("name", DRAWING)
def test_diffusers_draws_once_in_the_rows_that_ours_draw_in(name: str) -> None:
    """So that the k-th draw of a stream belongs to the same row. What it draws after ours have ended, nobody sees."""
    scheduler, asked = find_scheduler(CONFIG, name)
    plan = plan_from_config(CONFIG, 8, name=name, eta=ETAS.get(name))
    draws = Asked(plan.rows)
    made = Theirs(scheduler.class_name, {**CONFIG, **asked, **({"eta": ETAS[name]} if name in ETAS else {})})
    made.grid(0, num_inference_steps=8)
    made.walk(made.first(draws.draws[0], None), lambda x, t: 0.1 * np.tanh(x), plan.t, draws)  # type: ignore[arg-type]
    ours = [row for row in range(plan.rows) if plan.draws(row)]
    assert ours
    assert draws.rows[: len(ours)] == ours


@pytest.mark.parametrize("kind", [TorchCpu, TorchCuda, A1111])
def test_noise_is_unit_normal(kind: type) -> None:
    count = 100_000
    values = kind(123).randn((count,)).astype(np.float64)
    # moments of a unit normal, within five standard deviations: 1, 2 and 96 are the variances of x, x^2, x^4
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (4, 3, 96)):
        assert abs((values**power).mean() - mean) < 5 * np.sqrt(variance / count)
