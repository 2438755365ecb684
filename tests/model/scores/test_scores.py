"""Scores of features, beside torchmetrics and scipy, slow twins, and what is known of Gaussians."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from ldmrt.model.scores.frechet import frechet_distance
from ldmrt.model.scores.kernel import kernel_distance
from ldmrt.model.scores.manifold import precision_and_recall
from ldmrt.model.scores.nearest import nearest_neighbours
from ldmrt.runtime import LdmrtError

SIZES = [(60, 50, 8), (40, 40, 64), (1500, 1100, 5)]  # images, others, width: also fewer than numbers, and two blocks


def two_sets(sizes: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.random.default_rng(sum(sizes))
    n, m, width = sizes
    mixing = numbers.normal(size=(width, width))
    return numbers.normal(size=(n, width)), numbers.normal(0.3, 1.2, (m, width)) @ mixing / width**0.5


def root_of_the_product(a: np.ndarray, b: np.ndarray) -> float:
    """The slow obvious way: the formula as it is printed, with scipy's root of a matrix."""
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    apart = a.mean(axis=0) - b.mean(axis=0)
    return float(apart @ apart + np.trace(first + second) - 2 * np.trace(sqrtm(first @ second)).real)


@pytest.mark.parametrize("sizes", SIZES)
def test_frechet_distance_is_that_of_scipy_and_torchmetrics(sizes: tuple[int, int, int]) -> None:
    a, b = two_sets(sizes)
    found = frechet_distance(a, b)
    # roots of covariances of low rank lose half of their digits in scipy
    assert found == pytest.approx(root_of_the_product(a, b), rel=1e-9 if len(a) > a.shape[1] else 1e-5)
    from torchmetrics.image.fid import _compute_fid as compute

    moments = [torch.from_numpy(value) for x in (a, b) for value in (x.mean(axis=0), np.cov(x, rowvar=False))]
    assert found == pytest.approx(compute(*moments).item(), rel=1e-9 if len(a) > a.shape[1] else 1e-5)  # as above


def test_frechet_distance_of_shifted_features_is_the_shift() -> None:
    a = np.random.default_rng(0).normal(size=(100, 7))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)  # float64 of numbers near 7
    assert frechet_distance(a, a + 2) == pytest.approx(7 * 4, rel=1e-12)
    assert frechet_distance(a, 3 * (a - a.mean(axis=0)) + a.mean(axis=0)) == pytest.approx(
        4 * a.var(axis=0, ddof=1).sum(), rel=1e-12
    )


def test_kernel_distance_is_that_of_torchmetrics() -> None:
    from torchmetrics.image.kid import poly_mmd

    for sizes in ((60, 60, 8), (40, 40, 64), (1100, 1100, 5)):  # torchmetrics takes as many of both
        a, b = two_sets(sizes)
        expected = poly_mmd(torch.from_numpy(a), torch.from_numpy(b)).item()
        assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-9)  # float64 in both, other order of sums


@pytest.mark.parametrize("sizes", SIZES[:2])
def test_kernel_distance_is_that_of_a_loop(sizes: tuple[int, int, int]) -> None:
    a, b = two_sets(sizes)

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    within = [np.mean([k(x, y) for i, x in enumerate(c) for j, y in enumerate(c) if i != j]) for c in (a, b)]
    expected = sum(within) - 2 * np.mean([k(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-9)  # float64, other order of sums


def test_kernel_distance_has_no_bias() -> None:
    numbers = np.random.default_rng(0)
    found = [kernel_distance(*numbers.normal(size=(2, 20, 4))) for _ in range(400)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 400**0.5  # 4 standard errors


def counted(a: np.ndarray, b: np.ndarray, k: int) -> tuple[float, float]:
    """Precision and recall, the slow obvious way."""

    def on(x: np.ndarray, others: np.ndarray) -> bool:
        own = np.sort(cdist(others, others), axis=1)[:, k]  # column 0 is the image itself
        return bool((cdist([x], others)[0] <= own).any())

    return float(np.mean([on(x, a) for x in b])), float(np.mean([on(x, b) for x in a]))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("sizes", SIZES[:2])
def test_precision_and_recall_are_those_of_a_loop(sizes: tuple[int, int, int], k: int) -> None:
    a, b = two_sets(sizes)
    assert precision_and_recall(a, b, k) == counted(a, b, k)


# Of guided-diffusion's evaluations/evaluator.py (commit 22e0df8), run once with TensorFlow 2.21.0 and NumPy 2.1.3 on
# the features of `whole_numbers`: `Evaluator.compute_prec_recall` with a `ManifoldEstimator` in a session of its own.
# It computes in half precision, in which the squared distances of these features are exact.
EVALUATOR = [
    (0, (300, 260, 6), (0.8115384615384615, 0.9933333333333333)),
    (1, (500, 400, 4), (0.985, 0.986)),
    (2, (100, 100, 24), (0.99, 0.7)),
]


def whole_numbers(seed: int, sizes: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Real and generated features with many equal distances."""
    numbers, (n, m, width) = np.random.default_rng(seed), sizes
    return numbers.integers(-4, 5, (n, width)), numbers.integers(-5 + seed, 5, (m, width))


@pytest.mark.parametrize(("seed", "sizes", "expected"), EVALUATOR)
def test_precision_and_recall_are_exactly_those_of_guided_diffusion(
    seed: int, sizes: tuple[int, int, int], expected: tuple[float, float]
) -> None:
    assert precision_and_recall(*whole_numbers(seed, sizes)) == expected


def test_precision_and_recall_of_half_of_the_modes() -> None:
    numbers = np.random.default_rng(0)
    real = numbers.normal(size=(200, 6)) + np.where(np.arange(200) < 100, 0, 50)[:, None]
    assert precision_and_recall(real, real) == (1, 1)
    precision, recall = precision_and_recall(real, real[:100] + 1e-6)
    assert (precision, recall) == (1, 0.5)
    assert precision_and_recall(real, real + 1000) == (0, 0)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = two_sets(SIZES[0])
    whole = precision_and_recall(a, b), nearest_neighbours(a, b).ratio
    monkeypatch.setattr("ldmrt.model.scores.distances.squared_distances.__defaults__", (7,))
    parts = precision_and_recall(a, b), nearest_neighbours(a, b).ratio
    assert parts[0] == whole[0]
    np.testing.assert_array_equal(parts[1], whole[1])


def test_ten_planted_copies_are_found() -> None:
    numbers = np.random.default_rng(0)
    training = numbers.integers(0, 256, (80, 8, 8, 3), np.uint8)
    training[70:] = training[:10]  # copies in the training images hide nothing
    generated = numbers.integers(0, 256, (40, 8, 8, 3), np.uint8)
    planted = numbers.permutation(40)[:10]
    generated[planted] = training[:10]
    generated[planted[5:], 0] ^= 3  # half of them with other low bits in a row
    found = nearest_neighbours(training, generated)
    assert set(found.worst[:10].tolist()) == set(planted.tolist())
    assert found.copied == 10 / 40
    np.testing.assert_array_equal(training[found.index[planted]], training[:10])
    assert (found.ratio[planted[:5]] == 0).all()
    # the slow obvious way
    for i, image in enumerate(generated):
        apart = np.sort([np.linalg.norm(image.astype(float) - other) for other in np.unique(training, axis=0)])
        assert found.distance[i] == pytest.approx(apart[0])
        assert found.ratio[i] == pytest.approx(apart[0] / apart[1])


def test_features_that_have_no_score_are_refused() -> None:
    a = np.zeros((5, 3))
    for score in (frechet_distance, kernel_distance, precision_and_recall, nearest_neighbours):
        with pytest.raises(LdmrtError, match="too few images for this score"):
            score(a[:1], a)
        with pytest.raises(LdmrtError, match="features are not finite; found 3 numbers"):
            score(np.eye(5, 3), np.where(np.eye(5, 3), np.nan, 0))
        with pytest.raises(LdmrtError, match=r"features of different widths; expected [23]; found [23]"):
            score(np.eye(5, 3), np.zeros((5, 2)))
    with pytest.raises(LdmrtError, match="too few images for this score; expected at least 2; found 1"):
        nearest_neighbours(a, a)  # five times the same
