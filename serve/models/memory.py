"""Tell how much memory the weights of all models may take together."""

from ldmrt.runtime import host
from ldmrt.runtime.backends import gpu

SHARE = 0.5  # of the free memory: the other half is what each model takes for its images, see `Forecast`
ON_GPU = ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx")


def for_weights(backend: str) -> float | None:
    """Return how many bytes of weights may be in memory at a time: half of what is free now; None where it is unknown.

    Memory is the GPU's for backends that run there, and the smaller of both where the backend is found later.
    """
    machine, device = host.free_memory(), None
    if backend in (*ON_GPU, "auto"):
        device = gpu.free_memory()
    known = [free for free in ((device,) if backend in ON_GPU else (machine, device)) if free is not None]
    return SHARE * min(known) if known else None
