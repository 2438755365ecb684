"""Run a training: show its progress, and save its state regularly, on a signal and on failure."""

import shutil
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.files.writing import write_atomically
from ldmrt.tools.console.memory import show_memory
from ldmrt.tools.console.progress import console, watched
from ldmrt.tools.console.script import out_of_memory

from .options import Options
from .recipe import RECIPE
from .records.card import Card
from .records.log import LOG
from .signals import end_by, interrupt_held, listening

if TYPE_CHECKING:
    from torch import nn

    from ldmrt.model.training.data.buckets import BucketedImages
    from ldmrt.model.training.data.captioned import ImageFolder
    from ldmrt.model.training.log import Log
    from ldmrt.model.training.loop.run import Run
    from ldmrt.model.training.loop.task import Progress, TrainingTask
    from ldmrt.model.training.mirrors import Mirror

    Held = ImageFolder | BucketedImages

M = TypeVar("M", bound="nn.Module")

MEGABYTE = 1_000_000


def run_training(
    run: "Run[M]", task: "TrainingTask", options: Options, keep: Callable[[], None], held: "Held | None" = None
) -> None:
    """Run a training to its end, log it, and save its recipe and its state; or print how much memory it will take.

    A signal to stop saves the state of the last whole step, and so does a step that fails. Of several processes the
    first does all this, and the others take part in its steps.

    Args:
        run: The module in training and its settings.
        task: What it learns.
        options: Say where the run is kept, how often it is saved and logged, and whether it is resumed.
        keep: Writes the networks as they are now; called after each save of the state.
        held: Images whose loss is logged then; None for none.

    Raises:
        LdmrtError: There is not enough memory, or the state cannot be saved.
    """
    from ldmrt.model.training.log import Log
    from ldmrt.model.training.loop.memory import plan_memory

    if options.plan:
        show_memory(plan_memory(run, task, options.processes), run.settings, options.processes)
        return
    out, steps, every = options.out, run.settings.steps, options.save_every
    run.processes = options.group or run.processes
    if options.resume:
        _resume(run, options)
    run.processes.check_equal("step", run.step)
    if not run.processes.first:
        _follow(run, task)
        return
    card = Card(run, options, task.data, held, task.regularisation)
    if run.step >= steps:
        keep()  # the process may have been killed between the last state and this
        if run.step == steps:
            card.write()
        hint = f"--steps above {run.step} with --change steps continues"
        console.print(f"done already: {run.step} of {steps} steps; {hint}", highlight=False)
        return
    begin, saved = time.perf_counter(), run.step
    log, last = Log(out / LOG, options.log_every, task.timesteps, run.step, _mirrors(run, options)), None
    with write_atomically(out / RECIPE) as file:
        file.write(options.recipe.encode(errors="replace"))  # names of files may be no text
    with listening() as signals:
        try:
            loop = _reporting(run, run.optimise(task))
            for progress in watched(loop, steps, lambda p: _described(run, p), start=run.step):
                log.add(progress, len(run.skipped))
                last, (stop, saving) = progress, signals.agreed(run.processes)
                due = run.step % every == 0 or run.step == steps
                if due or saving or stop:
                    saved = run.step
                    save(run, options, regular=due)
                    log.write(progress, len(run.skipped))
                if due:
                    keep()
                if due and held is not None:
                    _validate(run, task, held, log)
                if due:
                    card.write()
                if stop and run.step < steps:
                    console.print(f"stopped at step {run.step}; go on with --resume", highlight=False)
                    end_by(stop)
        except Exception as error:
            if run.step > saved and not run.torn:
                save(run, options, regular=False)
                if last is not None:
                    log.write(last, len(run.skipped))
                console.print(f"saved the state of step {run.step}; go on with --resume", highlight=False)
            if out_of_memory(error):
                raise _too_large(run, error) from None
            raise
        finally:
            for mirror in log.mirrors:
                mirror.close()
    console.print(f"{run.step} steps in {(time.perf_counter() - begin) / 60:.1f} min: {out}", highlight=False)


def _mirrors(run: "Run[M]", options: Options) -> "list[Mirror]":
    """Open what the log is written to beside its file."""
    from ldmrt.model.training.mirrors import TensorBoard, WeightsAndBiases

    mirrors = list["Mirror"]()
    if options.wandb:
        config = {**run.about, **run.settings.shaping()}
        mirrors.append(WeightsAndBiases(options.out, options.out.name, config, run.step))
    if options.tensorboard:
        mirrors.append(TensorBoard(options.out / "tensorboard", run.step))
    return mirrors


def _follow(run: "Run[M]", task: "TrainingTask") -> None:
    """Take part in the steps of a training that the first process saves, logs and shows."""
    from ldmrt.model.training.loop.averages import Averages

    run.averages = Averages({}, run.settings.decays)  # the first process alone keeps them
    with listening() as signals:
        for _ in run.optimise(task):
            stop, _ = signals.agreed(run.processes)
            if stop and run.step < run.settings.steps:
                end_by(stop)


def _validate(run: "Run[M]", task: "TrainingTask", held: "Held", log: "Log") -> None:
    """Measure the loss of held-out images, log it and print it."""
    from ldmrt.model.training.validation import MOST, validation_losses

    losses, count = validation_losses(run, task, held), min(MOST, len(held))
    log.validated(run.step, losses)
    shown = f"{sum(losses.values()):.4f} (held-out images: {count})"
    console.print(f"step {run.step}: validation loss {shown}", highlight=False)


def _too_large(run: "Run[M]", error: Exception) -> LdmrtError:
    settings, found = run.settings, first_line(error) or None
    problem = f"not enough memory for {settings.at_once} samples at once"
    return LdmrtError("train", problem, found=found, hint=settings.smaller)


def _resume(run: "Run[M]", options: Options) -> None:
    """Go on from the newest state that is whole; print which are not, and which settings have changed."""
    from ldmrt.model.training.loop.states.kept import newest_state, remove_old_states

    state, damaged = options.once(lambda: newest_state(options.out))
    for path, found in damaged.items():
        console.print(f"{path} is damaged: {found}", highlight=False, markup=False, soft_wrap=True)
    if damaged:
        console.print(f"going on from {state}", highlight=False, markup=False, soft_wrap=True)
    with interrupt_held():
        changes = run.resume(state, options.change)
    for name, (before, now) in changes.items():
        console.print(f"{name} is {now} after step {run.step}, and was {before}", highlight=False, markup=False)
    if run.processes.first:
        remove_old_states(options.out, state, options.keep)


def save(run: "Run[M]", options: Options, *, regular: bool) -> None:
    """Save the state of a run, and remove older ones; if it cannot be saved, all are kept.

    Raises:
        LdmrtError: The state cannot be written; it names the bytes needed and free.
    """
    from ldmrt.model.training.loop.states.kept import remove_old_states, saved_states, state_place

    place, before = state_place(options.out, run.step, regular=regular), saved_states(options.out)
    try:
        run.save(place)
    except OSError as error:
        free = shutil.disk_usage(options.out).free / MEGABYTE
        kept = f"; {before[0]} is kept" if before else ""
        raise LdmrtError(
            "train",
            f"cannot save step {run.step} to {place}: {error.strerror}{kept}",
            expected=f"{run.bytes() / MEGABYTE:.0f} MB",
            found=f"{free:.0f} MB free",
            hint=f"--resume with a --keep below {len(before)} removes older ones" if len(before) > 1 else None,
        ) from None
    remove_old_states(options.out, place, options.keep)


def _reporting(run: "Run[M]", loop: "Iterator[Progress]") -> "Iterator[Progress]":
    """Yield the steps, and report each skipped image once."""
    reported = 0
    for progress in loop:
        for reason in list(run.skipped.values())[reported:]:
            console.print(f"skipped: {reason}", highlight=False, markup=False, soft_wrap=True)
        reported = len(run.skipped)
        yield progress


def _described(run: "Run[M]", progress: "Progress") -> str:
    skipped = f", {len(run.skipped)} skipped" if run.skipped else ""
    if progress.loss_scale is not None and progress.loss_scale.skipped:
        skipped += f", {progress.loss_scale.skipped} steps skipped"
    return f"loss {progress.loss:.4f}, {progress.rate:.0f} images/s{skipped}"
