"""The plan as a value: saved and loaded, refused, printed."""

import json
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ldmrt.runtime import SCHEDULERS, LdmrtError, Plan

from ...support.plans import CONFIG, plan


def same(a: Plan, b: Plan) -> None:
    for field in fields(Plan):
        one, other = getattr(a, field.name), getattr(b, field.name)
        assert type(one) is type(other), field.name
        if isinstance(one, np.ndarray):
            assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes()), field.name
        else:
            assert one == other, field.name


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, {}) for name in SCHEDULERS),
        ("ddim", {"clip_sample": True}),
        ("dpmpp_2m", {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 3.0}),
        ("ddpm", {"variance_type": "learned_range"}),
        ("ddpm", {"variance_type": "learned"}),
    ],
)
def test_saved_plan_is_the_same_to_the_bit(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    made = plan(name, 7, **change)
    made.save(tmp_path / "plan.json")
    same(made, Plan.load(tmp_path / "plan.json"))


def test_saved_plan_keeps_none_and_tuples(tmp_path: Path) -> None:
    made = plan("dpmpp_2m", thresholding=True)
    made.save(tmp_path / "plan.json")
    found = Plan.load(tmp_path / "plan.json")
    assert (found.clip, found.spread, found.threshold) == (None, None, (0.995, 1.0))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_plan_is_refused(tmp_path: Path, share: float) -> None:
    plan("heun", 3).save(tmp_path / "plan.json")
    content = (tmp_path / "plan.json").read_bytes()
    (tmp_path / "plan.json").write_bytes(content[: int(share * len(content))])
    with pytest.raises(LdmrtError, match=r"plan: .*plan\.json cannot be read; expected what Plan\.save wrote"):
        Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize("harm", ["short", "word", "none", "flat"])
@pytest.mark.parametrize("key", ["t", "alpha", "sigma", "read", "table", "spread"])
def test_plan_whose_arrays_do_not_fit_is_refused(key: str, harm: str, tmp_path: Path) -> None:
    plan("ddpm", 3, variance_type="learned_range").save(tmp_path / "plan.json")
    state = json.loads((tmp_path / "plan.json").read_text())
    state[key] = {
        "short": state[key][:-1],
        "word": ["much", *state[key][1:]],
        "none": [None, *state[key][1:]],
        "flat": np.ravel(state[key]).tolist() * 2,
    }[harm]
    (tmp_path / "plan.json").write_text(json.dumps(state))
    with pytest.raises(LdmrtError, match="cannot be read"):
        Plan.load(tmp_path / "plan.json")


FOREIGN = {
    "scheduler_config": json.dumps(CONFIG).encode(),
    "list": b"[]",
    "number": b"3",
    "null": b"null",
    "bytes": b"\xff\xfe\x00",
    "one key": b'{"threshold": null}',
    "key too many": b'{"t": [], "alpha": [], "sigma": [], "read": [], "table": [], "threshold": null, "colour": "red"}',
    "ragged": b'{"t": [1.0, [2.0]], "alpha": [], "sigma": [], "read": [], "table": [], "threshold": null}',
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_file_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(FOREIGN[kind])
    with pytest.raises(LdmrtError, match="cannot be read"):
        Plan.load(tmp_path / "plan.json")


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(LdmrtError, match="cannot be read"):
            Plan.load(path)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_printed_plan_shows_every_coefficient(name: str) -> None:
    made = plan(name, 5)
    head, *lines = str(made).split("\n")
    assert head.split() == ["row", "t", "alpha", "sigma"]
    assert len(lines) == made.rows
    registers = ["m", "x", *(f"s{i}" for i in range(1, made.table.shape[1])), "z", "x0"]
    for row, line in enumerate(lines):
        number, t, alpha, sigma = line.split()[:4]
        assert int(number) == row
        # printed with 3 and 5 places
        np.testing.assert_allclose(float(t), made.t[row], atol=0.0005)
        np.testing.assert_allclose([float(alpha), float(sigma)], [made.alpha[row], made.sigma[row]], atol=5e-6)
        read = np.zeros_like(made.table[row])
        for output, terms in re.findall(r"(\w+)' =((?: [+-]\S+ \w+)+)", line):
            for weight, register in re.findall(r"(\S+) (\w+)", terms):
                read[registers.index(output) - 1, registers.index(register)] = float(weight)
        np.testing.assert_allclose(read, made.table[row], rtol=5e-6)  # 6 digits


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_first_latents_have_the_variance_of_the_first_node(name: str, spacing: str) -> None:
    """1 for data of unit variance. Diffusers leaves the data out where its samplers with levels start from the last."""
    made = plan(name, timestep_spacing=spacing)
    late = spacing != "leading" and name in ("lms", "euler", "euler_a", "heun", "dpm2", "dpm2_a", "dpmpp_sde")
    data = 0.0 if late else made.alpha[0]
    np.testing.assert_allclose(made.prior_scale, math.hypot(data, made.sigma[0]), rtol=1e-14)  # roundings of float64
