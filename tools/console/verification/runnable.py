"""A backend that can run a bundle in a precision, as it is measured."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
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
