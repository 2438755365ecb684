"""Keys of a scheduler's config that a request, an export or a file changes: typed, checked, and named when wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.samplers.registry import plan_from_config
from ldmrt.runtime.samplers.settings import parse_setting, read_scheduler, with_settings

EULER: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading", "steps_offset": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("timestep_spacing=trailing", ("timestep_spacing", "trailing")),
        ("steps_offset=1", ("steps_offset", 1)),
        ("beta_end=0.02", ("beta_end", 0.02)),
        ("use_karras_sigmas=true", ("use_karras_sigmas", True)),
        ("use_karras_sigmas=True", ("use_karras_sigmas", True)),
        ("trained_betas=[0.1, 0.2]", ("trained_betas", [0.1, 0.2])),
        ("sigma_max=None", ("sigma_max", None)),
        ("a=b=c", ("a", "b=c")),
    ],
)
def test_parse(text: str, expected: tuple[str, Any]) -> None:
    assert parse_setting(text) == expected


@pytest.mark.parametrize("text", ["", "timestep_spacing", "=trailing"])
def test_no_setting(text: str) -> None:
    with pytest.raises(LdmrtError, match=r"scheduler: invalid setting .*; expected KEY=VALUE"):
        parse_setting(text)


def test_trailing_spacing_starts_from_noise_alone() -> None:
    """A model of one step runs at 999, not at 1."""
    assert plan_from_config(EULER, 1).t[0] == 1
    assert plan_from_config(with_settings(EULER, {"timestep_spacing": "trailing"}), 1).t[0] == 999


@pytest.mark.parametrize(
    ("settings", "name", "message"),
    [
        (
            {"timestep_spacings": 1},
            None,
            "EulerDiscreteScheduler has no 'timestep_spacings'; .*\n  try: timestep_spacing",
        ),
        ({"clip_sample": False}, None, "EulerDiscreteScheduler has no 'clip_sample'"),
        ({"use_karras_sigmas": True}, "ddim", "DDIMScheduler has no 'use_karras_sigmas'"),
        ({"steps_offset": "one"}, None, "invalid steps_offset"),
        ({"steps_offset": 1.5}, None, "invalid steps_offset"),
        ({"steps_offset": True}, None, "invalid steps_offset"),
        ({"use_karras_sigmas": "yes"}, None, "invalid use_karras_sigmas"),
        ({"prediction_type": "x0"}, None, "no prediction_type 'x0'"),
        ({"beta_end": float("nan")}, None, "invalid beta_end"),
    ],
)
def test_what_is_no_setting_of_the_class(settings: dict[str, Any], name: str | None, message: str) -> None:
    with pytest.raises(LdmrtError, match=message):
        with_settings(EULER, settings, name)


def test_settings_of_another_scheduler() -> None:
    """Keys are those of the scheduler that is asked for."""
    changed = with_settings(EULER, {"solver_order": 3}, "dpmpp_2m_karras")
    assert plan_from_config(changed, 5, name="dpmpp_2m_karras").rows == 5
    assert with_settings(EULER, {}) == EULER


def test_files(tmp_path: Path) -> None:
    (tmp_path / "scheduler_config.json").write_text(json.dumps(EULER))
    assert read_scheduler(tmp_path) == read_scheduler(tmp_path / "scheduler_config.json") == EULER
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": "CosineDPMSolverMultistepScheduler"}))
    with pytest.raises(LdmrtError, match="unknown scheduler 'CosineDPMSolverMultistepScheduler'"):
        read_scheduler(tmp_path)
