"""Resizing in NumPy gives what torch.nn.functional.interpolate gives."""

from typing import Any

import numpy as np
import pytest

from ldmrt.runtime.images.resizing import METHODS, resize

THEIRS: dict[str, dict[str, Any]] = {
    "nearest": {"mode": "nearest"},
    "bilinear": {"mode": "bilinear", "align_corners": False},
    "bilinear_aligned": {"mode": "bilinear", "align_corners": True},
    "bicubic": {"mode": "bicubic", "align_corners": False, "antialias": True},
    "bicubic_sharp": {"mode": "bicubic", "align_corners": False},
    "nearest_exact": {"mode": "nearest-exact"},
}
SIZES = [  # none becomes one pixel wide, where torch repeats the first row of an antialiased image
    ((1, 1), (3, 5)), ((5, 3), (2, 2)), ((7, 9), (14, 18)), ((7, 9), (28, 36)), ((7, 9), (7, 9)), ((8, 8), (13, 21)),
    ((13, 21), (8, 8)), ((16, 12), (15, 11)), ((17, 5), (5, 17)), ((31, 29), (10, 3)), ((33, 3), (11, 2)),
    ((3, 33), (100, 34)), ((2, 2), (9, 9)), ((10, 10), (25, 15)), ((40, 24), (16, 9)), ((41, 43), (82, 86)),
    ((19, 23), (57, 2)), ((6, 50), (4, 33)), ((27, 27), (26, 28)), ((64, 48), (21, 20)),
]  # fmt: skip


@pytest.mark.oracle
@pytest.mark.parametrize(("old", "new"), SIZES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_resizing_is_torchs(method: str, old: tuple[int, int], new: tuple[int, int]) -> None:
    import torch

    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, *old)).astype(np.float32)
    found = resize(images, new, method)
    expected = torch.nn.functional.interpolate(torch.from_numpy(images).double(), new, **THEIRS[method]).numpy()
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    if method.startswith("nearest"):
        assert np.array_equal(found, expected)
    assert np.abs(found - expected).max() <= 1e-6  # a few roundings of float32 against float64


def test_the_tolerance_tells_the_methods_apart() -> None:
    images = np.random.default_rng(1).uniform(-1, 1, (1, 1, 7, 9)).astype(np.float32)
    found = [resize(images, (17, 23), method) for method in METHODS]
    assert min(np.abs(a - b).max() for i, a in enumerate(found) for b in found[:i]) > 0.1


def test_a_flat_image_stays_flat() -> None:
    images = np.full((1, 2, 11, 5), 0.25, np.float32)
    for method in METHODS:
        assert np.allclose(resize(images, (23, 3), method), 0.25, rtol=0, atol=1e-7)  # weights sum to 1
