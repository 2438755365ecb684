"""Replaces weights of an engine that was just loaded, by the names that its ONNX file has for them.

That happens once, before anything runs in it. An engine that takes one set of weights after another keeps of the first
what the second does not name: https://github.com/NVIDIA/TensorRT/issues/3628.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from ldmrt.runtime.tensors import Array, Arrays

from .api import CudaEngine, Refitter
from .session import Refused, Session, must


@dataclass(frozen=True)
class OtherWeights:
    """Holds weights that an engine takes in the place of its own.

    Attributes:
        arrays: The weights by name, in the dtypes that the ONNX file has.
        constant: Returns a constant of the graph by its name; None of one that is none.
    """

    arrays: Arrays = field(repr=False)
    constant: Callable[[str], Array | None] = field(repr=False)


def replace_weights(session: Session, engine: CudaEngine, weights: OtherWeights) -> None:
    """Replace weights of an engine.

    TensorRT fuses layers, and takes weights that were fused all or none; those that are not replaced are the graph's.

    Raises:
        Refused: The engine does not take them.
    """
    if not engine.refittable:
        raise Refused("it is not refittable")
    refitter: Refitter = session.trt.Refitter(engine, session.log)
    known, given = {*refitter.get_all_weights()}, Arrays()  # TensorRT reads the arrays where they are, when it refits
    if unknown := sorted(weights.arrays.keys() - known):
        raise Refused(f"it has no weights of {len(unknown)} names, such as {unknown[0]}")
    waiting = dict(weights.arrays)
    while waiting:
        for name, array in waiting.items():
            must(refitter.set_named_weights(name, array), f"set_named_weights of {name}")
        given |= waiting
        waiting = {name: _constant(weights, name) for name in refitter.get_missing_weights() if name not in given}
    must(refitter.refit_cuda_engine(), "refit_cuda_engine")


def _constant(weights: OtherWeights, name: str) -> Array:
    """Return a constant of the graph."""
    value = weights.constant(name)
    if value is None:
        raise Refused(f"it wants weights {name}, which the graph does not have")
    return value
