"""A program that is lowered in place becomes the same ONNX file as one that torch's own pass traces again."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.onnx._internal.exporter import _fx_passes

from ldmrt.export.components.table import components
from ldmrt.export.graph.operators import decompositions
from ldmrt.export.graph.to_onnx import to_onnx
from ldmrt.model import load
from tests.support.families.sana import save_sana
from tests.support.families.stable_diffusion_3 import save_sd3
from tests.support.pipelines import save_pipeline

SAVED: dict[str, Callable[[str, Path], Path]] = {"sd35-medium": save_sd3, "sana": save_sana}


@pytest.mark.slow(minutes=1)
@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("the tiny model", ["text_encoder", "vae_encoder"]),
        ("sdxl", ["unet"]),  # sizes that -1 stands for, of constant shapes
        ("ldm", ["vae_decoder"]),  # with a codebook
        ("sd35-medium", ["text_encoder_3"]),  # T5, which adds in place
        ("sana", ["text_encoder", "vae_encoder"]),
    ],
)
def test_the_graphs_are_those_of_torchs_own_pass(
    family: str, names: list[str], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family != "the tiny model":
        checkpoint = SAVED.get(family, save_pipeline)(family, tmp_path / "checkpoint")
    parts = components(load(checkpoint))
    slow = list[object]()
    own = _fx_passes.decompose_with_registry

    def noted(*given: object) -> object:
        slow.append(given)
        return own(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(_fx_passes, "decompose_with_registry", noted)
    for written in ("check_graph", "write_fused_step", "write_tiles", "write_cuda_graphs"):  # of model.onnx
        monkeypatch.setattr(f"ldmrt.export.graph.to_onnx.{written}", lambda *given: None)
    fast = {name: to_onnx(parts[name], tmp_path / "fast" / name).read_bytes() for name in names}
    assert slow == []
    monkeypatch.setattr("ldmrt.export.graph.to_onnx.lowered_once", contextlib.nullcontext)
    assert {name: to_onnx(parts[name], tmp_path / "slow" / name).read_bytes() for name in names} == fast
    assert len(slow) == len(names)


@pytest.mark.slow(minutes=0.16)
def test_an_unknown_operator_is_left_to_torchs_own_pass(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = components(load(checkpoint))["vae_encoder"]
    fast = to_onnx(part, tmp_path / "fast").read_bytes()
    monkeypatch.setattr(decompositions, "LOWERED", {})
    assert to_onnx(part, tmp_path / "slow").read_bytes() == fast
