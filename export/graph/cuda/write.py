"""Writes unet/model.cuda.onnx beside unet/model.onnx, and so on: the same network in operators with fast CUDA kernels.

On a GPU, ONNX Runtime 1.31 runs some standard operators on the CPU (InstanceNormalization of opset 22 and later) or
returns wrong numbers (Attention with heads of 160 channels). Its own operators, of the domain `com.microsoft`, run on
the GPU and are right. Nothing else has them, so they get a graph of their own, which reads the weights of the first.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ldmrt.export.graph.checks import check_graph
from ldmrt.runtime.bundle.graphs import CUDA, cuda_file

from .norms import normalise_channels_last
from .rewrites import MICROSOFT
from .transformer import attend, fuse_gated_gelu, fuse_residual_norms, keep_channels_last

if TYPE_CHECKING:
    from onnx_ir import Model


def write_cuda_graphs(component: str, folder: Path) -> None:
    """Write the CUDA graph of every ONNX file in a component's folder that has none and that differs from it.

    Raises:
        LdmrtError: ONNX's checker refuses a graph.
    """
    for path in sorted(folder.glob("*.onnx")):
        if not path.name.endswith(CUDA) and not cuda_file(path).is_file():
            write_cuda_graph(component, path, cuda_file(path))


def write_cuda_graph(component: str, path: Path, target: Path) -> bool:
    """Write the CUDA graph of an ONNX file; return whether it differs from it, and is written."""
    import onnx_ir
    from onnx_ir.passes.common import ShapeInferencePass

    model = onnx_ir.load(path)
    ShapeInferencePass()(model)  # graphs that were put together, such as the fused step, state no shapes within
    if not rewrite_for_cuda(model):
        return False
    onnx_ir.save(model, target)
    check_graph(component, "its graph for CUDA", target)
    return True


def rewrite_for_cuda(model: "Model") -> bool:
    """Rewrite a graph for CUDA in place; return whether anything changed."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    rewrites = (keep_channels_last, normalise_channels_last, attend, fuse_gated_gelu, fuse_residual_norms)
    changed = [rewrite(model.graph) for rewrite in rewrites]
    RemoveUnusedNodesPass()(model)
    model.graph.sort()
    model.graph.opset_imports[MICROSOFT] = 1
    return any(changed)
