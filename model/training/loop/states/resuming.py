"""Compare a resumed training with the saved one: settings that may change, weights that must be finite, layouts."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldmrt.model.weights.weights import finite
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.nearest import suggestion

CHANGEABLE = (  # with --change
    *("steps", "batch", "accumulate", "learning-rate", "seed", "precision", "device", "compile", "size"),
    *("buckets", "crop"),
    *("data", "schedule", "warmup", "validation", "snr-gamma", "debias", "loss", "huber-c"),
    *("flip", "random-crop", "shuffle-tags", "keep-tags", "prefix", "wildcards", "max-upscale"),
    *("timesteps", "offset-noise", "pyramid-noise", "input-perturbation", "latents", "loss-mask"),
)
UNSTATED = {"latents": "fp32"}  # settings that runs of older versions do not state, and what they had
Values = tuple[object, object]  # of a setting, before and now


def check_changes(names: Collection[str]) -> None:
    """Refuse names of settings that cannot be changed."""
    for name in names:
        if name not in CHANGEABLE:
            problem = f"no setting {name!r} that can be changed{suggestion(name, CHANGEABLE)}"
            raise LdmrtError("train", problem, expected=", ".join(CHANGEABLE))


def changes(
    path: Path, before: Mapping[str, object], now: Mapping[str, object], change: Collection[str]
) -> dict[str, Values]:
    """Find the settings of a resumed run that differ from those of the saved one.

    Args:
        path: The saved run, for messages.
        before: The settings of the saved run.
        now: The settings of the resumed run.
        change: Names of settings that may differ.

    Returns:
        Both values of each setting that differs, by its name as an option.

    Raises:
        LdmrtError: Settings differ that are not in `change`, or that cannot be changed; it names them all.
    """
    check_changes(change)
    before = {**UNSTATED, **before}
    differ = {key.replace("_", "-"): (before.get(key), value) for key, value in now.items() if before.get(key) != value}
    refused = {name: values for name, values in differ.items() if name not in change}
    if "buckets" in refused:
        refused.pop("data", None)  # shapes are a part of its digest, so it differs too
    if fixed := {name: values for name, values in refused.items() if name not in CHANGEABLE}:
        raise _another(path, fixed, "another --out")
    if refused:
        raise _another(path, refused, " ".join(f"--change {name}" for name in refused))
    return differ


def _another(path: Path, differ: Mapping[str, Values], hint: str) -> LdmrtError:
    """Return the error that names the settings that differ, with both values."""
    named = [(f"--{name}" if name in CHANGEABLE else name, values) for name, values in differ.items()]
    before, now = (
        ", ".join(f"{values[side]}" if len(named) == 1 else f"{name} {values[side]}" for name, values in named)
        for side in (0, 1)
    )
    problem = f"{path} was trained with another {', '.join(name for name, _ in named)}"
    return LdmrtError("train", problem, expected=before, found=now, hint=hint)


def check_finite(state: Mapping[str, Any], where: str, hint: str) -> None:
    """Refuse a run's state with a weight, or an average of one, that is infinite or not a number.

    Args:
        state: The state.
        where: Where it is, for the message.
        hint: What to do then.
    """
    for part in (state["module"], state["average"], *state.get("averages", {}).values(), state.get("opponent", {})):
        for name, value in part.items():
            if not finite(value):
                raise LdmrtError("train", f"{name} in {where} is not finite", hint=hint)


def with_tuples(values: Mapping[str, object]) -> dict[str, object]:
    """Return values with tuples in the place of lists, as which JSON has them."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def put_moments(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Put copies of the saved state of an optimizer back, in the memory layout that it had: that of the weights.

    Another layout may be computed in another order, which rounds differently.
    """
    groups = [with_tuples(group) | {"params": group["params"]} for group in state["param_groups"]]
    each = {int(place): value for place, value in state["state"].items()}
    optimizer.load_state_dict({**state, "state": each, "param_groups": groups})
    for weight, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor):
                alike = weight.dim() > 1 and value.shape == weight.shape
                moments[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value) if alike else value.clone()
