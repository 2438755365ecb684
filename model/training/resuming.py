"""What a resumed training has in common with the saved one, and which settings may change where that is asked for."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.nearest import suggestion

CHANGEABLE = ("steps", "batch", "learning-rate", "seed", "precision", "device", "size", "data")  # with --change


def check_changes(names: Collection[str]) -> None:
    """Refuse names of settings that cannot be changed."""
    for name in names:
        if name not in CHANGEABLE:
            problem = f"no setting {name!r} that can be changed{suggestion(name, CHANGEABLE)}"
            raise LdmrtError("train", problem, expected=", ".join(CHANGEABLE))


def changes(
    path: Path, before: Mapping[str, Any], now: Mapping[str, Any], change: Collection[str]
) -> dict[str, tuple[Any, Any]]:
    """The settings of a resumed run that differ from those of the run saved in `path`, with both values.

    Each has to be among those that the user wants to `change`; one `LdmrtError` names all that are not.
    """
    check_changes(change)
    differ = {key.replace("_", "-"): (before.get(key), value) for key, value in now.items() if before.get(key) != value}
    refused = {name: values for name, values in differ.items() if name not in change}
    if fixed := {name: values for name, values in refused.items() if name not in CHANGEABLE}:
        raise _another(path, fixed, "another --out")
    if refused:
        raise _another(path, refused, " ".join(f"--change {name}" for name in refused))
    return differ


def _another(path: Path, differ: Mapping[str, tuple[Any, Any]], hint: str) -> LdmrtError:
    named = [(f"--{name}" if name in CHANGEABLE else name, values) for name, values in differ.items()]
    before, now = (
        ", ".join(f"{values[side]}" if len(named) == 1 else f"{name} {values[side]}" for name, values in named)
        for side in (0, 1)
    )
    problem = f"{path} was trained with another {', '.join(name for name, _ in named)}"
    return LdmrtError("train", problem, expected=before, found=now, hint=hint)
