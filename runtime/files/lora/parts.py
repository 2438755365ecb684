"""Build the layers of a LoRA file of their parts: which of them belong together, and which product they make."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from ldmrt.runtime.tensors import Array

from .layers import Corrected, Delta, Hadamard, Kronecker, Layer, LowRank, Magnitude, Product, Whole
from .names import INDICES, LOKR, SIZE, SPARSE, VALUES

Parts = Mapping[str, Array]


def _pair(parts: Collection[str], name: str) -> bool:
    """Tell whether both factors of a product are there."""
    return f"{name}_a" in parts and f"{name}_b" in parts


def _factor(parts: Collection[str], name: str) -> bool:
    """Tell whether a factor is there, whole or as a product, and not as both."""
    halves = f"{name}_a" in parts or f"{name}_b" in parts
    return _pair(parts, name) and name not in parts if halves else name in parts


def _product(parts: Parts, name: str, core: str) -> Product:
    """Make a product of two factors, with a core if that is there."""
    return Product(parts[f"{name}_a"], parts[f"{name}_b"], parts.get(core))


@dataclass(frozen=True)
class Method:
    """Describes a way to store a difference: its parts, the test for those it needs, and the difference they make."""

    parts: frozenset[str]
    complete: Callable[[Collection[str]], bool]
    build: Callable[[Parts], Delta]


def _lora_complete(parts: Collection[str]) -> bool:
    return "down" in parts and "up" in parts


def _lora(parts: Parts) -> LowRank:
    return LowRank(parts["down"], parts["up"], parts.get("mid"))


def _loha_complete(parts: Collection[str]) -> bool:
    return _pair(parts, "hada_w1") and _pair(parts, "hada_w2") and ("hada_t1" in parts) == ("hada_t2" in parts)


def _loha(parts: Parts) -> Hadamard:
    return Hadamard(_product(parts, "hada_w1", "hada_t1"), _product(parts, "hada_w2", "hada_t2"))


def _lokr_complete(parts: Collection[str]) -> bool:
    factors = _factor(parts, "lokr_w1") and _factor(parts, "lokr_w2")
    return factors and all(f"lokr_t{i}" not in parts or _pair(parts, f"lokr_w{i}") for i in (1, 2))


def _lokr(parts: Parts) -> Kronecker:
    if (core := parts.get("lokr_t1")) is not None and core.shape[2:] == (1, 1):
        parts = {**parts, "lokr_t1": core[:, :, 0, 0]}  # the first factor is a matrix
    first, second = (
        Whole(parts[name]) if name in parts else _product(parts, name, core)
        for name, core in (("lokr_w1", "lokr_t1"), ("lokr_w2", "lokr_t2"))
    )
    return Kronecker(first, second)


LOHA = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"})
METHODS = {
    "LoRA": Method(frozenset({"down", "up", "mid"}), _lora_complete, _lora),
    "LoHa": Method(LOHA, _loha_complete, _loha),
    "LoKr": Method(frozenset(f"lokr_{part}" for part in LOKR), _lokr_complete, _lokr),
    "difference": Method(frozenset({"diff"}), lambda parts: "diff" in parts, lambda parts: Whole(parts["diff"])),
}


def lacks(parts: Collection[str]) -> str | None:
    """Say why these parts are not a layer, if they are none."""
    methods = _methods(parts)
    if len(methods) > 1:
        return f"mix {' and '.join(methods)}"
    if not methods:
        return None if set(parts) == {"diff_b"} else "lack their down or their up"
    if not METHODS[methods[0]].complete(parts) or ("up_bias" in parts and methods != ["LoRA"]):
        return "lack their down or their up" if methods == ["LoRA"] else f"lack a part of a {methods[0]}"
    if 0 < len(set(SPARSE) & set(parts)) < len(SPARSE):
        return f"lack one of {', '.join(SPARSE)}"
    return None


def build(name: str, parts: Parts, noted: Callable[[int | None], float | None]) -> Layer | None:
    """Build the layer of parts that lack nothing.

    Args:
        name: The layer's name, as the file spells it.
        parts: Its tensors by part.
        noted: Returns the noted scale at a rank, for files without an alpha; None where nothing is noted.

    Returns:
        The layer, whose scale is 1 where nothing is known; None where the factors do not fit each other.
    """
    delta = next((METHODS[method].build(parts) for method in _methods(parts)), None)
    if delta is not None and INDICES in parts:
        delta = Corrected(delta, parts[INDICES], parts[VALUES], tuple(parts[SIZE].reshape(-1).tolist()))
    alpha = parts.get("alpha")
    if (delta is not None and not delta.fits()) or (alpha is not None and alpha.size != 1):
        return None
    scale = _scale(delta, alpha, noted)
    biases = [
        parts[part].astype(np.float32) * np.float32(scale if part == "up_bias" else 1)
        for part in ("diff_b", "up_bias")
        if part in parts
    ]
    bias = sum(biases[1:], biases[0]) if biases else None
    return Layer(name, delta, scale, bias, _magnitude(parts))


def _scale(delta: Delta | None, alpha: Array | None, noted: Callable[[int | None], float | None]) -> float:
    """Compute alpha / rank; it is 1 for whole differences, but for a LoKr of whole factors that PEFT notes."""
    rank = None if delta is None else delta.rank
    if alpha is not None:
        return 1.0 if rank is None else float(alpha.reshape(())) / rank
    scale = noted(rank) if rank is not None or isinstance(delta, Kronecker) else None
    return 1.0 if scale is None else scale


def all_finite(parts: Parts) -> bool:
    """Tell whether no number in a layer's parts is infinite or NaN, alpha included."""
    return all(bool(np.isfinite(part).all()) for part in parts.values())


def _methods(parts: Collection[str]) -> list[str]:
    """Return the names of `METHODS` that have any of these parts."""
    return [name for name, method in METHODS.items() if not method.parts.isdisjoint(parts)]


def _magnitude(parts: Parts) -> Magnitude | None:
    """Return DoRA's norms, if there are any.

    PEFT has them by row, LyCORIS in the shape of the weight with 1 where it takes the norm.
    """
    if (norms := parts.get("magnitude")) is not None:
        return Magnitude(norms)
    if (norms := parts.get("dora_scale")) is not None:
        by_column = norms.ndim > 1 and norms.shape[0] == 1 < norms.shape[1]
        return Magnitude(norms, by_column, inside=False)
    return None
