"""A resumed training has the settings of the saved one, or says which differ."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.states.files import read_state, write_state
from ldmrt.model.training.loop.states.resuming import CHANGEABLE
from ldmrt.runtime import LdmrtError, LdmrtWarning

from ..tiny_runs import SETTINGS, saved

OTHERS = {
    "steps": 9, "batch": 4, "learning_rate": 1e-3, "warmup": 3, "ema": 0.9, "clip": 2.0, "seed": 1, "precision": "bf16",
    "accumulate": 3, "schedule": "linear", "optimizer": "sgd", "compile": True,
}  # fmt: skip


@pytest.mark.parametrize("name", list(OTHERS))
def test_a_resumed_run_has_the_settings_of_the_saved_one(name: str, tmp_path: Path) -> None:
    """Each that the weights depend on is one error by name, or a change that is asked for and noted."""
    path, other = saved(tmp_path), replace(SETTINGS, **{name: OTHERS[name]})
    option, before, run = name.replace("_", "-"), getattr(SETTINGS, name), Run(nn.Linear(2, 2), other)
    shown = f"--{option}" if option in CHANGEABLE else option
    message = f"another {shown}; expected {before}; found {OTHERS[name]}\n"
    with pytest.raises(LdmrtError, match=message) as caught:
        run.resume(path)
    assert caught.value.hint == (f"--change {option}" if option in CHANGEABLE else "another --out")
    if option not in CHANGEABLE:
        return
    assert run.resume(path, [option]) == {option: (before, OTHERS[name])}
    run.save(path)
    assert Run(nn.Linear(2, 2), other).resume(path) == {}
    back = Run(nn.Linear(2, 2), SETTINGS)
    back.resume(path, ["data", option])
    assert back.changes == [
        {"step": 1, "name": option, "before": before, "now": OTHERS[name]},
        {"step": 1, "name": option, "before": OTHERS[name], "now": before},
    ]


def test_every_setting_is_compared() -> None:
    assert (
        {*OTHERS, "device"}
        == SETTINGS.shaping().keys()
        == asdict(SETTINGS).keys() - {"skip_unreadable", "checkpointing", "ema_on_cpu"}
    )


def test_several_other_settings_are_one_error(tmp_path: Path) -> None:
    path = saved(tmp_path)
    run = Run(nn.Linear(2, 2), replace(SETTINGS, steps=9, batch=4), {"prediction": "sample"})
    with pytest.raises(LdmrtError, match="another prediction; expected None; found sample\n  try: another --out"):
        run.resume(path)
    run = Run(nn.Linear(2, 2), replace(SETTINGS, steps=9, batch=4))
    with pytest.raises(
        LdmrtError, match="--steps, --batch; expected --steps 4, --batch 3; found --steps 9, --batch 4"
    ) as caught:
        run.resume(path)
    assert caught.value.hint == "--change steps --change batch"


def test_a_state_without_settings_is_resumed(tmp_path: Path) -> None:
    """One of an older version, which cannot be compared."""
    path = saved(tmp_path)
    state = read_state(path)
    del state["changes"]
    write_state(path, {**state, "about": {}})
    run = Run(nn.Linear(2, 2), replace(SETTINGS, steps=9))
    assert run.resume(path) == {}
    assert run.step == 1


def test_another_torch_is_a_warning(tmp_path: Path) -> None:
    path = saved(tmp_path)
    state = read_state(path)
    assert state["torch"] == torch.__version__
    write_state(path, state | {"torch": "1.0"})
    with pytest.warns(LdmrtWarning, match=r"saved by torch 1\.0, this is .*: rounding may differ"):
        Run(nn.Linear(2, 2), SETTINGS).resume(path)
