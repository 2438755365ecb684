"""Can a backend compute in the precisions of a bundle? Few have everything in bfloat16."""

from collections.abc import Mapping

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.tensors import Engine

LACKING = "NOT_IMPLEMENTED"  # how ONNX Runtime says that it has no kernel


def lacking(bundle: Bundle, engines: Mapping[str, Engine]) -> str:
    """Which component cannot run for want of arithmetic, and why; empty where all can. Opens what is of bfloat16."""
    for name in bundle.components:
        if bundle.precision(name) == "bf16":
            try:
                engines[name]
            except LdmrtError as error:
                if LACKING not in str(error.found):
                    raise
                return f"{name} in bf16 ({str(error.found).rpartition(LACKING)[2].strip(' :')})"
    return ""
