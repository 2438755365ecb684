"""A training run, watched: its state is saved every so often, when it is asked to stop, and when it fails."""

import contextlib
import shutil
import signal
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from ldmrt.runtime.errors import LdmrtError, first_line

from .progress import console, watched
from .script import out_of_memory

STATE = Path("training") / "state.pt"
MEGABYTE = 1_000_000
STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C; Slurm, spot machines, `docker stop`; a terminal that is closed
SAVING = "SIGUSR1"


class Asked:
    """Which signals have come since the run began: to stop, and by which one, or to save and go on."""

    stop: int | None = None
    save = False


@contextlib.contextmanager
def listening() -> Iterator[Asked]:
    """Note signals instead of obeying them at once, so that a step is never cut in two. Ignored ones stay ignored."""
    asked, before = Asked(), dict[int, Any]()

    def note(number: int, frame: object) -> None:
        if number == getattr(signal, SAVING, None):
            asked.save = True
        else:
            asked.stop = number

    for name in (*STOPPING, SAVING):
        number = getattr(signal, name, None)  # Windows has not all of them
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def nothing_to_save() -> Iterator[None]:
    """Outlive a signal to save while there is nothing to save: before the first step, and after the last."""
    number = getattr(signal, SAVING, None)
    if number is None or signal.getsignal(number) is not signal.SIG_DFL:
        yield
        return
    signal.signal(number, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL)


def walk(
    run: Any, loop: Iterator[Any], out: Path, every: int, resume: bool, keep: Callable[[], None],
    change: Collection[str] = (),
) -> None:  # fmt: skip
    """Walk a training loop; every so often and at the end save its state and `keep` what it has learned.

    A signal to stop saves the state of the last whole step, and so does a step that fails. A resumed run may `change`
    these settings of the saved one.
    """
    state, steps = out / STATE, run.settings.steps
    if resume:
        for name, (before, now) in run.resume(state, change).items():
            console.print(f"{name} is {now} after step {run.step}, and was {before}", highlight=False, markup=False)
    if run.step >= steps:
        keep()  # the process may have been killed between the last state and this
        hint = f"--steps above {run.step} with --change steps goes on"
        console.print(f"done already: {run.step} of {steps} steps; {hint}", highlight=False)
        return
    begin, saved = time.perf_counter(), run.step
    with listening() as asked:
        try:
            for _ in watched(_reporting(run, loop), steps, lambda p: _described(run, p), start=run.step):
                due = run.step % every == 0 or run.step == steps
                if due or asked.save or asked.stop:
                    saved, asked.save = run.step, False
                    save(run, state)
                if due:
                    keep()
                if asked.stop and run.step < steps:
                    console.print(f"stopped at step {run.step}; go on with --resume", highlight=False)
                    raise KeyboardInterrupt if asked.stop == signal.SIGINT else SystemExit(128 + asked.stop)
        except Exception as error:
            if run.step > saved and not run.torn:
                save(run, state)
                console.print(f"saved the state of step {run.step}; go on with --resume", highlight=False)
            if out_of_memory(error):
                raise _too_large(run, error) from None
            raise
    console.print(f"{run.step} steps in {(time.perf_counter() - begin) / 60:.1f} min: {out}", highlight=False)


def _too_large(run: Any, error: Exception) -> LdmrtError:
    batch = run.settings.batch
    hint = f"--batch {batch // 2}, or a smaller --size" if batch > 1 else "a smaller --size"
    return LdmrtError("train", f"not enough memory for batches of {batch}", found=first_line(error) or None, hint=hint)


def save(run: Any, state: Path) -> None:
    """Write the state of a run; where that fails, the one that was saved before stays."""
    try:
        run.save(state)
    except OSError as error:
        free = shutil.disk_usage(state.parent).free / MEGABYTE
        kept = ", which stays as it was" if state.exists() else ""
        raise LdmrtError(
            "train", f"cannot save step {run.step} to {state}{kept}: {error.strerror}",
            expected=f"{run.bytes() / MEGABYTE:.0f} MB", found=f"{free:.0f} MB free",
        ) from None  # fmt: skip


def _reporting(run: Any, loop: Iterator[Any]) -> Iterator[Any]:
    """Pass the steps on; tell once of each image that was skipped."""
    told = 0
    for progress in loop:
        for reason in list(run.skipped.values())[told:]:
            console.print(f"skipped: {reason}", highlight=False, markup=False, soft_wrap=True)
        told = len(run.skipped)
        yield progress


def _described(run: Any, progress: Any) -> str:
    skipped = f", {len(run.skipped)} skipped" if run.skipped else ""
    return f"loss {progress.loss:.4f}, {progress.rate:.0f} images/s{skipped}"
