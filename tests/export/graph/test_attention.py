"""Attention whose heads lie side by side: beside its twin that moves them apart, and in what is exported."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor, nn

from ldmrt.export.graph.attention import attend_side_by_side
from ldmrt.model.networks.attention import Attention
from ldmrt.runtime.backends.ort.engine import OrtEngine

ROUNDING = 1e-6  # of the largest value: the same sums, which a kernel for rows that lie apart may order otherwise


class Moved(nn.Module):
    """Attention whose heads somebody looks at on their way."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Attention(24, 3)

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        q = self.inner.to_q(x).unflatten(-1, (3, -1)).transpose(1, 2)
        k = self.inner.to_k(context).unflatten(-1, (3, -1)).transpose(1, 2)
        attended = nn.functional.scaled_dot_product_attention(q, k, k)
        return attended.transpose(1, 2).flatten(2), attended.transpose(1, 2)


def exported(module: nn.Module, path: Path) -> tuple[Path, Path]:
    """As PyTorch writes it, and rewritten."""
    x, context = torch.randn(2, 9, 24), torch.randn(2, 5, 24)
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.onnx.export(
        module.eval(), (x, context), dynamo=True, opset_version=23, verbose=False,
        input_names=["x", "context"], dynamic_shapes=({0: batch, 1: torch.export.Dim("n", max=64)}, {0: batch}),
    )  # fmt: skip
    assert program is not None
    before, after = path / "before.onnx", path / "after.onnx"
    onnx_ir.save(program.model, before)
    attend_side_by_side(program.model)
    RemoveUnusedNodesPass()(program.model)
    onnx_ir.save(program.model, after)
    onnx.checker.check_model(str(after), full_check=True)
    return before, after


@pytest.mark.parametrize("heads", [1, 3])
def test_is_its_twin(heads: int, tmp_path: Path) -> None:
    torch.manual_seed(heads)
    before, after = exported(Attention(24, heads), tmp_path)
    assert sum(node.op_type in ("Transpose", "Reshape") for node in onnx.load(before).graph.node) == 8
    assert not any(node.op_type in ("Transpose", "Reshape") for node in onnx.load(after).graph.node)
    rng = np.random.default_rng(heads)
    feeds = {"x": rng.standard_normal((3, 7, 24), np.float32), "context": rng.standard_normal((3, 5, 24), np.float32)}
    (expected,), (found,) = (OrtEngine("test", path)(**feeds).values() for path in (before, after))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= ROUNDING * np.abs(expected).max()


def test_heads_that_are_looked_at_stay_apart(tmp_path: Path) -> None:
    before, after = exported(Moved(), tmp_path)
    assert [node.op_type for node in onnx.load(before).graph.node] == [
        node.op_type for node in onnx.load(after).graph.node
    ]


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_decoder", "vae_encoder"])
def test_all_that_is_exported(name: str, bundle: Path) -> None:
    graph = onnx.load(bundle / name / "model.onnx", load_external_data=False).graph
    attentions = [node for node in graph.node if node.op_type == "Attention"]
    assert attentions
    for node in attentions:
        assert {"q_num_heads", "kv_num_heads"} <= {one.name for one in node.attribute}
