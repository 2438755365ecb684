"""Transform the weights of 3x3 convolutions as graphs for CPUs have them: to tiles, or to four kernels.

`export/graph/cpu` explains both and writes the graphs. They are linear, so a changed weight changes them alike.
"""

import numpy as np

from ldmrt.runtime.tensors import Array

G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
TAPS = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float64)
PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))  # (a, b), of the pixels that each kernel computes
TILES = ".tiles"  # how the name of a weight ends that was transformed to tiles


def tiles_of(weight: Array) -> Array:
    """Transform the weight of a convolution, (K, C, 3, 3), to (16, K, C): G @ w @ G.T, in float64."""
    transformed = np.kron(G, G) @ weight.reshape(-1, 9).T.astype(np.float64)
    tiles: Array = transformed.reshape(16, *weight.shape[:2]).astype(weight.dtype)
    return tiles


def from_tiles(tiles: Array) -> Array:
    """Return the weight, (K, C, 3, 3), whose transform is (16, K, C), but for rounding."""
    flat = np.linalg.pinv(np.kron(G, G)) @ tiles.reshape(16, -1).astype(np.float64)
    weight: Array = flat.T.reshape(*tiles.shape[1:], 3, 3).astype(tiles.dtype)
    return weight


def kernel_at(weight: Array, place: tuple[int, int]) -> Array:
    """Sum the taps of a weight, (K, C, 3, 3), to the kernel at one of `PLACES`, (K, C, 2, 2), in float64."""
    a, b = place
    kernel: Array = (TAPS[a] @ weight.astype(np.float64) @ TAPS[b].T).astype(weight.dtype)
    return kernel


def from_kernels(four: "list[Array]") -> Array:
    """Return the weight, (K, C, 3, 3), whose kernels at `PLACES` are these, but for rounding."""
    sums = np.concatenate([np.kron(TAPS[a], TAPS[b]) for a, b in PLACES])  # (16, 9)
    stacked = np.concatenate([kernel.reshape(*kernel.shape[:2], 4) for kernel in four], axis=2)
    flat = stacked.astype(np.float64) @ np.linalg.pinv(sums).T
    weight: Array = flat.reshape(*four[0].shape[:2], 3, 3).astype(four[0].dtype)
    return weight


def ending(place: tuple[int, int]) -> str:
    """Return how the name of the kernel at one of `PLACES` ends."""
    return ".{}{}".format(*place)
