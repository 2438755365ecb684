"""A program that is lowered in place becomes the same ONNX file as one that torch's own pass traces again."""

import contextlib
from pathlib import Path

import pytest
from torch.onnx._internal.exporter import _fx_passes

from ldmrt.export.components.table import components
from ldmrt.export.graph.operators import decompositions
from ldmrt.export.graph.to_onnx import to_onnx
from ldmrt.model import load


@pytest.mark.slow(minutes=0.5)
@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_encoder", "vae_decoder"])
def test_the_graph_is_that_of_torchs_own_pass(
    name: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = components(load(checkpoint))[name]
    slow = list[object]()
    own = _fx_passes.decompose_with_registry

    def noted(*given: object) -> object:
        slow.append(given)
        return own(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(_fx_passes, "decompose_with_registry", noted)
    fast = to_onnx(part, tmp_path / "fast").read_bytes()
    assert slow == []
    monkeypatch.setattr("ldmrt.export.graph.to_onnx.lowered_once", contextlib.nullcontext)
    assert to_onnx(part, tmp_path / "slow").read_bytes() == fast
    assert len(slow) == 1


def test_an_unknown_operator_is_left_to_torchs_own_pass(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = components(load(checkpoint))["vae_encoder"]
    fast = to_onnx(part, tmp_path / "fast").read_bytes()
    monkeypatch.setattr(decompositions, "LOWERED", {})
    assert to_onnx(part, tmp_path / "slow").read_bytes() == fast
