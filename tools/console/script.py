"""Run a command, report whatever ends it, and exit with the code for that."""

import contextlib
import errno
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click

from .streams import steady

if TYPE_CHECKING:
    from ldmrt.runtime.errors import LdmrtError

WRONG = 2  # an error that a user can fix
BUG = 70  # a bug of ldmrt; 1 is a measured difference above its tolerance, or that lines of a file failed
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ENDINGS = ("SIGTERM", "SIGHUP")  # HUP: the terminal is gone; Windows has none


def run_script(command: click.Command, name: str | None = None) -> NoReturn:
    """Run a command and exit the process.

    The exit code is 2 with one message for an error that a user can fix, 130 after Ctrl-C, 143 after SIGTERM, and 70
    with a traceback for a bug of ldmrt.
    """
    ended: list[int] = []
    code = WRONG
    try:
        with steady(), as_interrupts(ended):
            code = _run(command, name)
    except OSError as error:  # the standard output, which is written last
        with contextlib.suppress(OSError):
            _tell(_of_the_system(error, "standard output"))
        code = WRONG
    sys.exit(128 + ended[0] if ended else code)


@contextlib.contextmanager
def as_interrupts(ended: list[int]) -> Iterator[None]:
    """Treat the signals that end a process as Ctrl-C while the block runs, and append their numbers to `ended`.

    Code that saves or removes files on Ctrl-C then does so for these signals too.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        if ended:
            return  # the command is ending already
        ended.append(number)
        handler = signal.getsignal(signal.SIGINT)
        (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)

    handled = []
    if threading.current_thread() is threading.main_thread():
        handled = [getattr(signal, name) for name in ENDINGS if hasattr(signal, name)]
        handled = [number for number in handled if signal.getsignal(number) is signal.SIG_DFL]
    for number in handled:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in handled:
            if signal.getsignal(number) is interrupt:  # a command may have chosen to ignore it from now on
                signal.signal(number, signal.SIG_DFL)


def _run(command: click.Command, name: str | None) -> int:
    """Run a command, report its error if there is one, and return the exit code."""
    try:
        return command.main(prog_name=name, standalone_mode=False) or 0
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except (click.Abort, KeyboardInterrupt):
        return _stopped()
    except Exception as error:
        return _stopped() if interrupted(error) else _report(error, command)


def _report(error: Exception, command: click.Command) -> int:
    """Tell an error of a command, and return the exit code."""
    from ldmrt.runtime.errors import LONGEST, LdmrtError, shortened
    from ldmrt.runtime.optional import ours, unavailable

    if isinstance(error, click.ClickException):
        if len(message := error.format_message()) > LONGEST:  # a value may be a megabyte
            _tell(shortened(message))
        else:
            error.show()
    elif isinstance(error, LdmrtError):
        _tell(error)
    elif isinstance(error, ImportError) and not ours(error):
        _tell(unavailable(error, _asked_of(command)))
    elif isinstance(error, OSError):
        _tell(_of_the_system(error, _asked_of(command)))
    elif full := _full_disk(error, _asked_of(command)):
        _tell(full)
    elif out_of_memory(error):
        problem = "recursion too deep" if isinstance(error, RecursionError) else "not enough memory"
        hint = "a smaller input: fewer or smaller images, or --low-memory or --batch where the command has them"
        _tell(LdmrtError(_asked_of(command), problem, found=shortened(error, 200) or None, hint=hint))
    else:
        traceback.print_exception(error)
        return BUG
    return WRONG


def _stopped() -> int:
    click.echo("stopped", err=True)
    return 128 + signal.SIGINT


def _tell(message: object) -> None:
    click.secho(f"error: {message}", fg="red", err=True)


def _asked_of(command: click.Command) -> str:
    """Return the name of the command; of a group, the subcommand on the command line."""
    words = [word for word in sys.argv[1:2] if isinstance(command, click.Group)]
    return words[0] if words else command.name or "ldmrt"


def interrupted(error: Exception) -> bool:
    """Tell whether Ctrl-C has caused an error.

    Python 3.11 turns an interrupt in `__set_name__` into a `RuntimeError`, and PyTorch's modes, which an interrupt has
    left half-entered, fail with one. What the system said afterwards, such as that the disk is full, is an error still.
    """
    chain = _chain(error)
    interrupt = next((i for i, cause in enumerate(chain) if isinstance(cause, KeyboardInterrupt)), None)
    return interrupt is not None and not any(isinstance(cause, (OSError, MemoryError)) for cause in chain[:interrupt])


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error, what caused it, what caused that, and so on."""
    chain, cause = list[BaseException](), error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    return chain


def out_of_memory(error: Exception) -> bool:
    """Tell whether memory or the stack has run out, in Python or in PyTorch, which has its own errors for that."""
    if isinstance(error, (MemoryError, RecursionError)) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _of_the_system(error: OSError, where: str) -> object:
    """Return the operating system's error, or what to do if a disk is full."""
    return _full_disk(error, where) or error


def _full_disk(error: BaseException, where: str) -> "LdmrtError | None":
    """Make the message for a full disk; None for any other error.

    The system's error may be the error itself or in its chain of causes; some libraries keep only its text.
    """
    from ldmrt.runtime.errors import LdmrtError

    program = Path(sys.argv[0]).stem.replace("cli", "ldmrt")  # python -m ldmrt.tools.cli
    for cause in _chain(error):
        number = cause.errno if isinstance(cause, OSError) else None
        reason = next((os.strerror(full) for full in FULL if full == number or os.strerror(full) in str(cause)), None)
        if reason is not None:
            file = cause.filename if isinstance(cause, OSError) else None
            hint = f"free some space there, then run again: {shlex.join([program, *sys.argv[1:]])}"
            return LdmrtError(str(file or where), "cannot be written", found=reason.lower(), hint=hint)
    return None
