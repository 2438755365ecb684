"""How a command is run: whatever ends it, what is said of that, and with which exit code."""

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

WRONG = 2  # a user can mend it
BUG = 70  # only we can; 1 is a difference that was measured
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ENDINGS = ("SIGTERM", "SIGHUP")  # HUP: the terminal is gone; Windows has none


def run_script(command: click.Command, name: str | None = None) -> NoReturn:
    """Run a command and exit: with 2 and one message for what a user can mend, 130 after Ctrl-C, 143 after SIGTERM, and
    70 with a traceback for a fault of ours.
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
    """Take the signals that end a process as Ctrl-C while the block runs, and note their numbers: whoever saves or
    removes something on Ctrl-C, does so then too.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        if ended:
            return  # it is ending
        ended.append(number)
        handler = signal.getsignal(signal.SIGINT)
        (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)

    taken = []
    if threading.current_thread() is threading.main_thread():
        taken = [getattr(signal, name) for name in ENDINGS if hasattr(signal, name)]
        taken = [number for number in taken if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _run(command: click.Command, name: str | None) -> int:
    """Run it, say what went wrong, and return the exit code."""
    from ldmrt.runtime.errors import LONGEST, LdmrtError, shortened
    from ldmrt.runtime.optional import ours, unavailable

    try:
        return command.main(prog_name=name, standalone_mode=False) or 0
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except click.ClickException as error:
        if len(said := error.format_message()) > LONGEST:  # a value may be a megabyte
            _tell(shortened(said))
        else:
            error.show()
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        return 128 + signal.SIGINT
    except LdmrtError as error:
        _tell(error)
    except ImportError as error:
        if ours(error):
            return _bug()
        _tell(unavailable(error, _asked_of(command)))
    except OSError as error:
        _tell(_of_the_system(error, _asked_of(command)))
    except Exception as error:
        if full := _full_disk(error, _asked_of(command)):
            _tell(full)
            return WRONG
        if not out_of_memory(error):
            return _bug()
        problem = "recursion too deep" if isinstance(error, RecursionError) else "not enough memory"
        hint = "a smaller input: fewer or smaller images, or --low-memory or --batch where the command has them"
        _tell(LdmrtError(_asked_of(command), problem, found=shortened(error, 200) or None, hint=hint))
    return WRONG


def _tell(message: object) -> None:
    click.secho(f"error: {message}", fg="red", err=True)


def _bug() -> int:
    traceback.print_exc()
    return BUG


def _asked_of(command: click.Command) -> str:
    """The command's name, a group's as it was called."""
    words = [word for word in sys.argv[1:2] if isinstance(command, click.Group)]
    return words[0] if words else command.name or "ldmrt"


def out_of_memory(error: Exception) -> bool:
    """Whether memory or the stack has run out, in Python or in PyTorch, which has errors of its own for that."""
    if isinstance(error, (MemoryError, RecursionError)) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _of_the_system(error: OSError, where: str) -> object:
    """An error of the operating system, with what to do where a disk is full."""
    return _full_disk(error, where) or error


def _full_disk(error: BaseException, where: str) -> "LdmrtError | None":
    """What to say where a file could not be written in full: the system's error in what was raised or in what led to
    it, or its words in the message of a library that keeps nothing else.
    """
    from ldmrt.runtime.errors import LdmrtError

    program = Path(sys.argv[0]).stem.replace("cli", "ldmrt")  # python -m ldmrt.tools.cli
    chain, one = list[BaseException](), error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or one.__context__  # type: ignore[assignment]
    for one in chain:
        number = one.errno if isinstance(one, OSError) else None
        said = next((os.strerror(full) for full in FULL if full == number or os.strerror(full) in str(one)), None)
        if said is not None:
            file = one.filename if isinstance(one, OSError) else None
            hint = f"make room there, then again: {shlex.join([program, *sys.argv[1:]])}"
            return LdmrtError(str(file or where), "cannot be written", found=said.lower(), hint=hint)
    return None
