"""Name where the networks of a pipeline come from, and what runs them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ldmrt.runtime.bundle.bundle import Bundle

if TYPE_CHECKING:
    from ldmrt.runtime.backends.trt.session import Session


@dataclass(frozen=True)
class Source:
    """Names the bundle that a pipeline was opened from, and how its networks are run.

    Attributes:
        bundle: The bundle.
        backend: The backend that was asked for.
        threads: Of the CPU; 0 is one a core.
        low_memory: Whether weights stay in their file.
        sessions: Those of TensorRT and TensorRT-RTX that run its engines.
    """

    bundle: Bundle
    backend: str
    threads: int = 0
    low_memory: bool = False
    sessions: "tuple[Session, ...]" = ()
