"""The U-Net cut in two for the deep cache (Ma, Fang & Wang 2023, arXiv:2312.00858, its branch 0).

    unet/unet_deep.onnx      the U-Net, which also gives `deep`: what enters the last layer of its last up block
    unet/unet_shallow.onnx   takes `deep`, and computes what is left: time, conv_in, that layer with conv_in's skip,
                             conv_out

Both are cut from the U-Net's own graph, nodes as they are, and read its weights.
"""

import re
from pathlib import Path

from ldmrt.export.components.table import Component
from ldmrt.runtime.bundle.graphs import DEEP, FEATURE, SHALLOW
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.tensors import Specs, TensorSpec

from .builder import remove_dead_nodes
from .checks import write_graph
from .module_graph import Graph


def check_cut(unet: Component) -> None:
    """An `LdmrtError` where a U-Net has no deep layers, or they are told what changes from row to row."""
    levels = len(unet.config["block_out_channels"])
    if levels < 2:
        raise LdmrtError("unet", "it has nothing that a deep cache could leave out", expected="2 levels", found=levels)
    if any("residual" in spec.name for spec in unet.inputs):
        raise LdmrtError("unet", "no deep cache beside controls, which steer every row", hint="leave one of them out")
    if unet.precision == "bf16":
        problem = "no deep cache in bfloat16, which NumPy cannot keep"
        raise LdmrtError("unet", problem, hint="--precision fp16")


def cut(path: Path, unet: Component) -> dict[str, tuple[Specs, Specs]]:
    """Write both graphs beside the U-Net's at `path`, which stays as it is: their inputs and outputs."""
    from onnx import helper

    named = Graph.read("unet", path)
    model, value = named.proto, _deep(named)
    graph, outputs = model.graph, list(model.graph.output)
    # The other shapes that are noted stay: ONNX Runtime fuses by them, and would add up in another order without.
    (noted,) = (one for one in graph.value_info if one.name == value)
    graph.value_info.remove(noted)
    kind = noted.type.tensor_type
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
    """Find what the last but one layer of the last up block gives."""
    layers = [match for name in named.gives if (match := re.fullmatch(r"up_blocks\.(\d+)\.resnets\.(\d+)", name))]
    block, layer = max(tuple(map(int, match.groups())) for match in layers)
    kinds = (f"up_blocks.{block}.{kind}.{layer - 1}" for kind in ("attentions", "resnets"))
    return next(named.gives[name] for name in kinds if name in named.gives)


def _dtype(kind: int) -> str:
    from onnx import helper

    return str(helper.tensor_dtype_to_np_dtype(kind))
