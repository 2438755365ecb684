"""Transformers are exported in bfloat16, for which ONNX has fewer operators than for the other types."""

from pathlib import Path

import onnx
import pytest
import torch

from ldmrt.export.bundle_writer import export_bundle
from ldmrt.export.precision.policy import apply_precisions
from ldmrt.model import load

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", ["sd3", "flux", "pixart", "sana"])
def test_onnx_takes_the_graph(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """An export has ONNX's checker look at every graph with its types."""
    folder: Path = request.getfixturevalue(f"{family}_checkpoint")
    loaded, _ = apply_precisions(lambda _: (load(folder), {}), {"": "bf16"}, {})
    assert next(loaded.denoiser.parameters()).dtype == torch.bfloat16
    for _ in export_bundle(loaded, tmp_path, only=["transformer"]):
        pass
    (path,) = tmp_path.rglob("model.onnx")
    graph = onnx.load(path, load_external_data=False).graph
    assert onnx.TensorProto.BFLOAT16 in {weight.data_type for weight in graph.initializer}
    assert "Einsum" not in {node.op_type for node in graph.node}
