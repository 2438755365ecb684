"""The exporter's optimiser without its rule that compares each node with every Slice writes the same graphs."""

from pathlib import Path

import pytest

from ldmrt.export.components.table import components
from ldmrt.export.graph.to_onnx import ZEROS, to_onnx
from ldmrt.model import load


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name"),
    [("flux_checkpoint", "transformer"), ("sd3_checkpoint", "transformer"), ("checkpoint", "unet")],
)
def test_the_rule_that_is_left_out_finds_nothing(
    family: str, name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = components(load(request.getfixturevalue(family)))[name]
    without = to_onnx(part, tmp_path / "without").read_bytes()
    monkeypatch.setattr("ldmrt.export.graph.to_onnx.LEFT_OUT", (ZEROS,))
    assert to_onnx(part, tmp_path / "with").read_bytes() == without
