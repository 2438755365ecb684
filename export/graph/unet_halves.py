"""The U-Net cut in two for the deep cache (Ma, Fang & Wang 2023, arXiv:2312.00858, its branch 0).

    unet/unet_deep.onnx      the U-Net, which also outputs `deep`: the input of the last layer of its last up block
    unet/unet_shallow.onnx   takes `deep`, and computes the rest: time, conv_in, that layer with conv_in's skip,
                             conv_out

Both are cut from the U-Net's own graph, nodes as they are, and read its weights.
"""

import re
from pathlib import Path

from ldmrt.export.components.component import Component
from ldmrt.runtime.bundle.graphs import DEEP, FEATURE, SHALLOW
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.tensors import Specs, TensorSpec

from .builder import remove_dead_nodes
from .checks import write_graph
from .module_graph import Graph


def check_cut(unet: Component) -> None:
    """Check that a U-Net can be cut in two for the deep cache.

    Raises:
        LdmrtError: It has no deep layers, they take inputs that change from row to row, or it is in bfloat16.
    """
    levels = len(unet.config["block_out_channels"])
    if levels < 2:
        raise LdmrtError("unet", "has no layers that a deep cache could skip", expected="2 levels", found=levels)
    if any("residual" in spec.name for spec in unet.inputs):
        problem = "a deep cache cannot be combined with controls, which change every row"
        raise LdmrtError("unet", problem, expected="only one of them")
    if unet.precision == "bf16":
        problem = "a deep cache cannot be kept in bfloat16, which NumPy has not"
        raise LdmrtError("unet", problem, hint="--precision fp16")


def cut(path: Path, unet: Component) -> dict[str, tuple[Specs, Specs]]:
    """Write both graphs beside the U-Net's own.

    Args:
        path: The U-Net's model.onnx, which is not changed.
        unet: The component, which `check_cut` accepts.

    Returns:
        Inputs and outputs of both graphs by their names.

    Raises:
        LdmrtError: The graph cannot be read, or one of the two is not valid.
    """
    from onnx import helper

    named = Graph.read("unet", path)
    model, value = named.proto, _deep(named)
    graph, outputs = model.graph, list(model.graph.output)
    # Value infos of other tensors stay: ONNX Runtime fuses by them, and would sum in another order without.
    (info,) = (info for info in graph.value_info if info.name == value)
    graph.value_info.remove(info)
    kind = info.type.tensor_type
    batch, _, *area = unet.inputs[0].shape  # of the sample
    spec = TensorSpec(FEATURE, _dtype(kind.elem_type), (batch, kind.shape.dim[1].dim_value, *area))
    feature = helper.make_tensor_value_info(FEATURE, kind.elem_type, spec.shape)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [FEATURE if name == value else name for name in names]

    graph.output.append(feature)
    write_graph("unet", DEEP, model, path.with_name(f"{DEEP}.onnx"))

    rest = [node for node in graph.node if FEATURE not in node.output]
    del graph.node[:], graph.output[:]
    graph.node.extend(rest)
    graph.input.append(feature)
    graph.output.extend(outputs)
    remove_dead_nodes(graph)
    write_graph("unet", SHALLOW, model, path.with_name(f"{SHALLOW}.onnx"))
    return {DEEP: (unet.inputs, (*unet.outputs, spec)), SHALLOW: ((*unet.inputs, spec), unet.outputs)}


def _deep(named: Graph) -> str:
    """Return the output of the last but one layer of the last up block."""
    layers = [match for name in named.gives if (match := re.fullmatch(r"up_blocks\.(\d+)\.resnets\.(\d+)", name))]
    block, layer = max(tuple(map(int, match.groups())) for match in layers)
    kinds = (f"up_blocks.{block}.{kind}.{layer - 1}" for kind in ("attentions", "resnets"))
    return next(named.gives[name] for name in kinds if name in named.gives)


def _dtype(kind: int) -> str:
    """Return the NumPy name of one of ONNX's dtypes."""
    from onnx import helper

    return str(helper.tensor_dtype_to_np_dtype(kind))
