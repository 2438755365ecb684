"""A backend that can run a bundle in a precision, as it is measured."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.pipeline.pipeline import Pipeline


class Runnable(NamedTuple):
    """A backend that can run a bundle."""

    backend: str
    compute: str  # the precision that it computes in
    open: "Callable[[], Pipeline]"

    @property
    def name(self) -> str:
        """Return its name in a certificate."""
        from ldmrt.runtime.bundle.certificate import backend_row

        return backend_row(self.backend, self.compute)


def runnable(
    bundle: "Bundle",
    backends: Sequence[str],
    compute: str = "fp32",
    *,
    calibrated: bool = True,
    low_memory: bool = False,
) -> tuple[list[Runnable], list[str]]:
    """Return the backends that can run a bundle in a precision, and why each other one cannot.

    Args:
        bundle: The opened bundle.
        backends: Their names.
        compute: The precision.
        calibrated: The bundle has to hold what the precision needs; else that is still to be measured.
        low_memory: They run with low memory.
    """
    from ldmrt.runtime.backends.registry import unsupported_precision
    from ldmrt.runtime.pipeline.opening import open_pipeline

    able, refused = list[Runnable](), list[str]()
    for backend in backends:
        opener = partial(_opened, bundle, backend, compute, low_memory=low_memory)
        opened = opener() if calibrated else open_pipeline(bundle.path, backend, check=False)
        if why := unsupported_precision(bundle, opened.engines):
            refused.append(f"{backend} cannot run {why}")
        else:
            able.append(Runnable(backend, compute, opener))
        opened.close()
    return able, refused


def _opened(bundle: "Bundle", backend: str, compute: str, *, low_memory: bool) -> "Pipeline":
    """Open a bundle that decodes whole images, as its checkpoint does: low memory alone would choose tiles."""
    from ldmrt.runtime.pipeline.autoencoder.decode import Decoding
    from ldmrt.runtime.pipeline.opening import open_pipeline

    opened = open_pipeline(bundle.path, backend, check=False, compute=compute, low_memory=low_memory)
    return replace(opened, decoding=Decoding()) if low_memory else opened


def short_of_memory(bundle: "Bundle") -> bool:
    """Tell whether the free memory cannot hold the weights of a bundle in float32."""
    from ldmrt.runtime.host import free_memory

    free = free_memory()
    sizes = (
        (1 if bundle.precision(name) == "fp32" else 2) * file.stat().st_size
        for name in bundle.components
        for file in bundle.model(name).parent.glob("*.onnx_data")
    )
    return free is not None and sum(sizes) > free
