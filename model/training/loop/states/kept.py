"""Keep the newest states of a run: those of its regular steps, and one of a step in between."""

import contextlib
import os
import re
from pathlib import Path

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.writing import remove, temporary_name

from .files import damage

STATES = Path("training") / "states"  # in the folder of a run
OLD = Path("training") / "state.pt"  # the only state of a run of an older version
NAME = re.compile(r"(step|between)-([0-9]+)")


def state_place(out: Path, step: int, *, regular: bool = True) -> Path:
    """Return where the state after a step is saved.

    Args:
        out: The folder of the run.
        step: The steps taken.
        regular: Whether it is one of the states that are saved regularly, or was saved in between, such as on a signal.
    """
    return out / STATES / f"{'step' if regular else 'between'}-{step:06d}"


def saved_states(out: Path) -> list[Path]:
    """Return the states of a run, the newest first; one of an older version is the last."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        names = [name for name in os.listdir(out / STATES) if NAME.fullmatch(name)]
        states = [out / STATES / name for name in names]
        return [*sorted(states, key=_step_of, reverse=True), *_old(out)]
    return _old(out)


def _old(out: Path) -> list[Path]:
    """Return the state of a run of an older version, if there is one."""
    return [out / OLD] * (out / OLD).is_file()


def _step_of(state: Path) -> int:
    """Return the steps that were taken before a state; 0 of one of an older version."""
    found = NAME.fullmatch(state.name)
    return int(found[2]) if found else 0


def newest_state(out: Path) -> tuple[Path, dict[Path, str]]:
    """Find the newest state of a run that is whole.

    Returns:
        The state, and what is wrong with each that is newer.

    Raises:
        LdmrtError: There is none, or none of them is whole.
    """
    damaged = dict[Path, str]()
    for state in saved_states(out):
        found = damage(state)
        if found is None:
            return state, damaged
        damaged[state] = found
    if not damaged:
        raise LdmrtError("train", "nothing to resume", expected=out / STATES, hint="train without --resume")
    newest, found = next(iter(damaged.items()))
    raise LdmrtError("train", f"cannot resume from {newest}", found=found, hint="another --out")


def remove_old_states(out: Path, newest: Path, keep: int) -> None:
    """Remove all states up to the newest but that one and the last `keep` regular ones.

    States saved in between do not count, so a run that fails again and again after a bad step does not push out those
    from before it. What is later than `newest` is damaged, or else it would be the newest: it is left alone.
    """
    past = [state for state in saved_states(out) if _step_of(state) <= _step_of(newest)]
    regular = [state for state in past if state.name.startswith("step")]
    for state in set(past) - {newest, *regular[:keep]}:
        aside = state.with_name(temporary_name(state.name))
        with contextlib.suppress(OSError):
            os.rename(state, aside)  # so that nobody finds a part of it
            remove(aside)
