"""Join the Ray cluster of this machine, or start one that ends with this process."""

import contextlib
import logging
import os
import signal
from collections.abc import Iterator

import ray

from ldmrt.runtime.errors import LdmrtError, first_line


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Be part of a Ray cluster: that of RAY_ADDRESS, or that which runs on this machine, or one that is started.

    A cluster that was started ends with the context. Where this process is killed before, it ends too; the last of its
    processes take a minute or two.

    Raises:
        LdmrtError: There is no cluster at RAY_ADDRESS, or none can be started.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault(
        "RAY_USAGE_STATS_ENABLED", "0"
    )  # a cluster that is started here reports nothing to Ray's makers
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        hint = "`ray status`; without RAY_ADDRESS a cluster is started here"
        raise LdmrtError("--ray", "no Ray cluster can be joined", found=first_line(error), hint=hint) from None
    finally:
        for number, handler in handlers.items():  # Ray sets its own
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()
