"""Use the average of a run's weights in the place of the present ones for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from .run import M, Run


@contextmanager
def with_average(run: Run[M]) -> Iterator[M]:
    """Put the averaged weights into a run's module, in eval mode, within this context.

    Yields:
        The module. The run is left as it was.
    """
    present = {name: value.clone() for name, value in run.weights().items()}
    run.put(run.average)
    run.module.eval()
    try:
        yield run.module
    finally:
        run.put(present)
        run.module.train()
