"""What a difference may be, and why."""

from collections.abc import Mapping
from dataclasses import dataclass

from ldmrt.runtime.backends.openvino.int8 import IN_INT8
from ldmrt.runtime.bundle.bundle import Bundle


@dataclass(frozen=True)
class Tolerance:
    """Limits the error of a component, relative to the largest value of an output; of an image, its PSNR in dB."""

    limit: float
    reason: str


COMPONENT = {  # finer ones first
    "fp32": Tolerance(2e-5, "float32 against float32, only the order of sums differs: 3e-6 at most was measured"),
    "fp16": Tolerance(1e-2, "float16 has 11 bits: an error of 5e-4 in each of many layers"),
    "bf16": Tolerance(8e-2, "bfloat16 has 8 bits: eight times float16's error"),
    "int8": Tolerance(2e-1, "int8 has 256 steps for all values of a layer: two and a half times bfloat16's error"),
}
IMAGE = {
    "fp32": Tolerance(60.0, "an RMS error of a quarter of a grey level after 20 rows and the decoder"),
    "fp16": Tolerance(40.0, "an RMS error of two and a half grey levels"),
    "bf16": Tolerance(30.0, "an RMS error of eight grey levels; the shipped model's is one"),
    "int8": Tolerance(25.0, "an RMS error of fourteen grey levels; beyond it the content of images changes"),
}


def tolerances(bundle: Bundle, compute: str = "fp32") -> Mapping[str, Tolerance]:
    """Return the tolerances of every component, and of rows and images: the coarsest precision decides theirs.

    Args:
        bundle: The opened bundle.
        compute: The precision that the backend computes in, where it is coarser than that of a component. With int8,
            components that it is not for compute in bfloat16 at most.
    """
    beside = "bf16" if compute == "int8" else compute
    computes = {name: compute if name.startswith(IN_INT8) else beside for name in bundle.components}
    precisions = {name: coarsest(bundle.precision(name), computes[name]) for name in bundle.components}
    limits = {name: COMPONENT[precision] for name, precision in precisions.items()}
    whole = coarsest(*precisions.values())
    return limits | {"rows": COMPONENT[whole], "picture": IMAGE[whole]}


def coarsest(*precisions: str) -> str:
    """Return the coarsest of some precisions."""
    return max(precisions, key=list(COMPONENT).index)
