"""Note the signals that come while a training runs, so that no step is interrupted."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from .launching import launched

if TYPE_CHECKING:
    from ldmrt.model.training.loop.processes import Processes

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C; Slurm, spot machines, `docker stop`; a terminal that is closed
SAVING = "SIGUSR1"


class Signals:
    """The signals that have come since the run began: the number of one to stop, and whether one was to save."""

    stop: int | None = None
    save = False

    def __init__(self) -> None:
        """Remember the process that started this one."""
        self.parent = os.getppid()

    def agreed(self, processes: "Processes") -> tuple[int, bool]:
        """Return what came to any process of a training: the signal to stop, or 0, and whether one was to save.

        The end of a launcher is a signal to stop. One that comes in between is for the next time.
        """
        save, self.save = self.save, False
        if not processes.alone and os.getppid() != self.parent:
            self.stop = self.stop or signal.SIGTERM
        stop, any_save = processes.largest(self.stop or 0, save)
        return stop, bool(any_save)


def end_by(stop: int) -> NoReturn:
    """Raise what ends the process as a signal asks for it."""
    raise KeyboardInterrupt if stop == signal.SIGINT else SystemExit(128 + stop)


@contextlib.contextmanager
def listening() -> Iterator[Signals]:
    """Note signals instead of obeying them at once, so that no step is interrupted; ignored signals stay ignored.

    A process that accelerate's launcher started ignores them afterwards: the launcher ends all as soon as one has
    ended, and this one may have something to say yet.
    """
    signals = Signals()

    def note(number: int, frame: object) -> None:
        if number == getattr(signal, SAVING, None):
            signals.save = True
        else:
            signals.stop = number

    with contextlib.ExitStack() as restored:
        for name in (*STOPPING, SAVING):
            number = getattr(signal, name, None)  # Windows does not have all of them
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before = signal.signal(number, note)
                restored.callback(signal.signal, number, signal.SIG_IGN if launched() else before)
        yield signals


@contextlib.contextmanager
def interrupt_held() -> Iterator[None]:
    """Hold Ctrl-C back until the end of the context: libraries turn it into errors of their own while they read files.

    Raises:
        KeyboardInterrupt: It came within.
    """
    came, before = list[int](), signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            raise KeyboardInterrupt


@contextlib.contextmanager
def nothing_to_save() -> Iterator[None]:
    """Ignore the signal to save while there is nothing to save: before the first step, and after the last."""
    number = getattr(signal, SAVING, None)
    if number is None or signal.getsignal(number) is not signal.SIG_DFL:
        yield
        return
    signal.signal(number, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL)
