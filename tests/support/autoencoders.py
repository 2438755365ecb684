"""Decoders and encoders that are easy to predict."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.tensors import TensorSpec

FACTOR = 4
Array = NDArray[Any]


def latents(*size: int) -> Array:
    return np.random.default_rng(0).standard_normal((1, 4, *size), dtype=np.float32)


def enlarged(x: Array) -> Array:
    """Each latent's first three channels, `FACTOR` pixels a side."""
    return x[:, :3].repeat(FACTOR, axis=2).repeat(FACTOR, axis=3)


def pooled(pixels: Array) -> Array:
    """Means of what becomes one latent, and their sum as a fourth channel."""
    n, c, high, wide = pixels.shape
    means = pixels.reshape(n, c, high // FACTOR, FACTOR, wide // FACTOR, FACTOR).mean((3, 5))
    return np.concatenate([means, means.sum(1, keepdims=True)], axis=1)


class Network:
    """One input, one output, and `more` that is made of it."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    names: tuple[str, str]

    def __init__(self, more: Callable[[Array], Array] = lambda made: made) -> None:
        self.more, self.sides = more, list[tuple[int, ...]]()

    def __call__(self, **arrays: Array) -> dict[str, Array]:
        (x,) = (arrays[name] for name in self.names[:1])
        self.sides.append(x.shape[2:])
        return {self.names[1]: self.more(self.made(x))}

    @staticmethod
    def made(x: Array) -> Array:
        return x

    def close(self) -> None: ...


class Decoder(Network):
    """Looks at one latent for each of its pixels."""

    names, made = ("latent_sample", "sample"), staticmethod(enlarged)


class Front(Network):
    """Latents as features."""

    names = ("latent_sample", "features")


class Encoder(Network):
    """Looks at its pixels for each latent: mean, and a log-variance that is its opposite."""

    names = ("sample", "latent_parameters")

    @staticmethod
    def made(x: Array) -> Array:
        return np.concatenate([pooled(x), -pooled(x)], axis=1)


class Back(Network):
    """Features as mean and log-variance."""

    names = ("features", "latent_parameters")

    @staticmethod
    def made(x: Array) -> Array:
        return np.concatenate([x, -x], axis=1)


class Normed:
    """Two norms of two groups, something bent after each: nothing that looks at its neighbours. Of features to pixels,
    or where it `encodes`, of pixels to features.
    """

    inputs = (TensorSpec("mean", "float32", ("batch", 2, 2)),)
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self, encodes: bool = False) -> None:
        self.encodes = encodes

    def __call__(self, **given: Array) -> dict[str, Array]:
        x = pooled(given["sample"]) if self.encodes else given["features"]
        share, moments = given["share"] / given["share"].sum(), []
        for norm in range(2):
            mean, variance = (given[name][:, :, norm].repeat(2, 1)[..., None, None] for name in ("mean", "variance"))
            d = x - mean
            first, second = ((one * share).sum((2, 3)).reshape(1, 2, 2).mean(2) for one in (d, d * d))
            moments.append((first, second))
            if given["own"]:
                mine = first.repeat(2, 1)[..., None, None]
                d, variance = d - mine, second.repeat(2, 1)[..., None, None] - mine**2
            x = np.tanh(d / np.sqrt(variance + 1e-6) + 0.3)
        made = {"features": x} if self.encodes else {"sample": enlarged(x)}
        return made | {f"moment_{i + 1}": np.stack([one[i] for one in moments], 2) for i in range(2)}

    def whole(self, x: Array) -> Array:
        """All at once, with its own statistics."""
        nothing, size = np.zeros((1, 2, 2)), tuple(side // (FACTOR if self.encodes else 1) for side in x.shape[2:])
        told = {"share": np.ones(size), "mean": nothing, "variance": nothing, "own": np.ones(1)}
        taken, made = ("sample", "features") if self.encodes else ("features", "sample")
        return self(**{taken: x}, **told)[made]

    def close(self) -> None: ...
