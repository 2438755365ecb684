"""Start the processes of a training by accelerate's launcher, and take part in one as a process that it started."""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

import click

from ldmrt.runtime.errors import LdmrtError
from ldmrt.tools.console.streams import to_nowhere

if TYPE_CHECKING:
    from ldmrt.model.training.loop.processes import Processes

WRONG = 2  # the exit code of an error that a user can fix
SHUTDOWN = "3600"  # seconds that the launcher waits after a signal, for a step to end and its state to be saved
PATIENCE = 30.0  # seconds that the others wait for the first process to print an error that each of them finds
_sharing = threading.Event()  # set when this process has joined the others: from then on they share their errors


def launched() -> int:
    """Return how many processes a launcher has started, this one among them; 0 where none did."""
    with contextlib.suppress(ValueError):
        if "LOCAL_RANK" in os.environ and int(os.environ.get("RANK", "")) >= 0:
            count = int(os.environ.get("WORLD_SIZE", ""))
            return count if count > 1 else 0
    return 0


@contextlib.contextmanager
def first_prints() -> Iterator[None]:
    """Silence this process within the context, unless it is the first of those that a launcher started.

    Before they have joined, each process finds the same error by itself, and the launcher ends all of them as soon as
    one has ended. The others therefore wait for the end of the first, and print an error that it does not have.
    """
    if not launched() or os.environ["RANK"] == "0":
        yield
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    errors = os.dup(2)
    to_nowhere(1)
    to_nowhere(2)
    try:
        yield
    except click.exceptions.Exit:  # --help
        raise
    except Exception:
        if not _sharing.is_set():
            time.sleep(PATIENCE)
            os.dup2(errors, 2)
        raise
    finally:
        os.close(errors)


@contextlib.contextmanager
def joined(asked: int, device: str, *, plan: bool = False) -> "Iterator[Processes | None]":
    """Join the other processes of a training within this context; None where there are none.

    Args:
        asked: How many --processes there shall be; with 2 and more, and no launcher, they are started and awaited.
        device: The device of the training.
        plan: Whether the training is only planned, in this process alone: the others are not started.

    Raises:
        LdmrtError: They cannot be started, or a launcher has started another number of them, or some for a plan.
        SystemExit: They were started, and have ended.
    """
    found = launched()
    if found and asked not in (1, found):
        hint = "no --processes where accelerate launches them"
        raise LdmrtError("train", "--processes is not the launcher's number", expected=found, found=asked, hint=hint)
    if found and plan:
        hint = "no launcher: --processes N plans one of N"
        raise LdmrtError("train", "--plan is of one process", found=f"{found} processes", hint=hint)
    if not found:
        if plan and asked > 1:
            check_launch(asked, device)
        elif asked > 1:
            raise SystemExit(launch(asked, device))
        yield None
        return
    from ldmrt.model.training.loop.processes import join

    processes = join(device)
    _sharing.set()
    with processes.sharing_errors():
        yield processes


def check_launch(count: int, device: str) -> None:
    """Refuse to start processes where accelerate is missing, or there are too few GPUs."""
    from ldmrt.model.training.loop.processes import check_gpus
    from ldmrt.runtime.optional import check_installed

    check_installed("train", "accelerate")
    if device == "cuda":
        check_gpus(count)


def launch(count: int, device: str) -> int:
    """Run this command in several processes by `accelerate launch`; return the exit code of the first that ended.

    Raises:
        LdmrtError: accelerate is missing, there are too few GPUs, or the first process was killed.
    """
    check_launch(count, device)
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count))
    args = launch_command_parser().parse_args([
        "--multi_gpu",  # the launcher of several processes, on the CPU too
        "--num_processes", str(count), "--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no",
        "--dynamo_backend", "no", "--num_cpu_threads_per_process", threads, "-m", "ldmrt", *sys.argv[1:],
    ])  # fmt: skip
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SHUTDOWN)
    try:
        with _quiet(), _handlers_kept():
            _pass_on("SIGUSR1")
            launch_command(args)
    except SignalException as ended:
        return 128 + ended.sigval
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode > 0:
            return int(failure.exitcode)
        if rank == 0:
            problem, found = f"process 0 of {count} was killed", signal.Signals(-failure.exitcode).name
            hint = "--resume continues from the saved state"
            raise LdmrtError("train", problem, found=found, hint=hint) from None
        return WRONG  # the first process has printed the error
    return 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the launcher logs: the processes say what ends them."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Restore the handlers of the signals that are set within."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pass_on(name: str) -> None:
    """Pass a signal on to the processes that this one has started."""
    import psutil  # which accelerate needs

    def send(number: int, frame: FrameType | None) -> None:
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(number)

    if hasattr(signal, name):
        signal.signal(getattr(signal, name), send)
