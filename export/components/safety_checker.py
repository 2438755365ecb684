"""Inputs and outputs of the safety checker, which looks at the images that are drawn."""

from collections.abc import Iterator

from ldmrt.model.checkpoint.checkpoint import Checkpoint
from ldmrt.model.library.clip_vision import SafetyChecker
from ldmrt.runtime.bundle.graphs import SAFETY_CHECKER
from ldmrt.runtime.pipeline.autoencoder.safety import CONCEPTS, SPECIAL
from ldmrt.runtime.tensors import TensorSpec

from .component import Component
from .specs import dtype_of


def safety_checker(c: Checkpoint) -> Iterator[Component]:
    """Yield the safety checker, if the checkpoint carries one."""
    if c.safety_checker is None:
        return
    model, dtype = c.safety_checker, dtype_of(c.safety_checker)
    config, size = model.model.config, int(model.model.config.image_size)
    outputs = zip((SPECIAL, CONCEPTS), SafetyChecker.COUNTED, strict=True)
    yield Component(
        SAFETY_CHECKER,
        model,
        (TensorSpec("pixel_values", dtype, ("batch", 3, size, size)),),
        tuple(TensorSpec(name, dtype, ("batch", len(model.get_parameter(counted)))) for name, counted in outputs),
        {**config.to_dict(), "architectures": ["StableDiffusionSafetyChecker"]},
    )
