"""Lets modules of a graph compute in int8: its convolutions and linear layers, with ranges that were measured before.

What such a module takes is rounded to 256 levels between the ends of its range. Its weights are rounded to 255 for each
output channel, and to 127 on CPUs without instructions for int8. OpenVINO knows both as its own forms of int8
(FakeQuantize and a scaled constant) and multiplies integers.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from ldmrt.runtime.host import features
from ldmrt.runtime.tensors import Array

from .api import Model, Node
from .islands import modules_of
from .library import openvino
from .ranges import Range

# How the names of components begin that compute in int8: they run in every row and take the latents. The decoder runs
# once, so that int8 saves little, and its errors are seen at once.
IN_INT8 = ("unet", "controlnet")
WEIGHTED = ("Convolution", "MatMul")  # operators that can compute in int8
LEVELS = 256  # of an activation
# Whole steps of a weight on each side of zero. CPUs that multiply bytes and add them in one instruction of 32 bits take
# all; others add pairs in 16 bits, which overflow beyond half of them. NNCF rounds to half in any case.
MOST, HALF = 127, 63
DOTS = ("vnni", "amx_int8", "asimddp")  # parts of the names of these instructions, x86's and Arm's
TINY = np.finfo(np.float32).tiny  # of a channel whose weights are all zero


def steps() -> int:
    """Return how many steps a weight may take on each side of zero on this machine."""
    return MOST if any(name in features() for name in DOTS) else HALF


def rounded(weight: Array, axis: int, most: int = MOST) -> tuple[Array, Array]:
    """Round a weight to int8, with a scale for each output channel.

    Args:
        weight: The weight, float.
        axis: Its axis of output channels.
        most: Steps on each side of zero.

    Returns:
        The int8 weight, and the float32 scales that it is to be multiplied with, of size 1 along all other axes.
    """
    others = tuple(one for one in range(weight.ndim) if one != axis % weight.ndim)
    wide = weight.astype(np.float32)
    scales = np.maximum(np.abs(wide).max(axis=others, keepdims=True) / np.float32(most), TINY)
    return np.rint(wide / scales).astype(np.int8), scales


def compute_in_int8(graph: Model, inputs: Mapping[str, Range]) -> int:
    """Let modules compute in int8, in place, and return how many convolutions and linear layers do.

    Args:
        graph: A graph whose nodes are called `<module>/<operator>`, before it is compiled.
        inputs: The range of what each module takes, by its path. Modules of other graphs may be among them.
    """
    operators, taken, count = openvino("backend").opset13, dict[tuple[str, int, Range], Node](), 0
    for node, path in list(modules_of(graph)):
        weight = weight_of(node)
        if weight is None or path not in inputs:
            continue
        value, ends = node.input_value(0), inputs[path]
        key = value.get_node().get_name(), value.get_index(), ends  # modules that take the same share one rounding
        if key not in taken:
            bounds = [operators.constant(np.float32(end)) for end in ends] * 2
            if (element := value.get_element_type().get_type_name()) != "f32":
                bounds = [operators.convert(bound, element) for bound in bounds]
            taken[key] = operators.fake_quantize(value, *bounds, LEVELS)
        node.input(0).replace_source_output(taken[key].output(0))
        whole, scales = rounded(weight.data, _output_axis(node), steps())
        wide = operators.convert(operators.constant(whole), "f32")
        made = operators.multiply(wide, operators.constant(scales))
        if (element := node.input_value(1).get_element_type().get_type_name()) != "f32":
            made = operators.convert(made, element)
        node.input(1).replace_source_output(made.output(0))
        count += 1
    return count


def weight_of(node: Node) -> Node | None:
    """Return the constant that a convolution or linear layer multiplies with; None for any other node."""
    if node.get_type_name() not in WEIGHTED:
        return None
    source = node.input_value(1).get_node()
    while source.get_type_name() in ("Convert", "ConvertLike"):  # of weights in half precision
        source = source.input_value(0).get_node()
    return source if source.get_type_name() == "Constant" else None


def _output_axis(node: Node) -> int:
    """Return the axis of a weight's output channels K: it is (K, C, ...) in a convolution, (C, K) or (K, C) else."""
    return 0 if node.get_type_name() == "Convolution" or node.get_attributes()["transpose_b"] else -1


def between(graph: Model, latents: str) -> Iterator[str]:
    """Yield the paths of the modules that int8 is for: those between the first and the last on the way of the latents.

    The first one takes the latents themselves, and the last one makes the result: both are small, and their errors
    would be seen at once. What does not depend on the latents, such as the embedding of the time and what attention
    takes from the prompt, is small too, and its range is that of the prompts that were seen.

    Args:
        graph: The graph of a network.
        latents: The name of its input.
    """
    after: dict[str, bool] = {}  # by the name of a node on the way: whether a module with weights came before it
    nodes, last = modules_of(graph), _last(graph)
    for node, path in nodes:
        sources = [value.get_node().get_name() for value in node.input_values()]
        if node.get_type_name() == "Parameter" and node.get_friendly_name() == latents:
            after[node.get_name()] = False
        elif node.get_type_name() != "ShapeOf" and any(source in after for source in sources):
            weighted = weight_of(node) is not None
            if weighted and after.get(sources[0]) and node.get_name() not in last:
                yield path
            after[node.get_name()] = weighted or any(after.get(source, False) for source in sources)


def _last(graph: Model) -> set[str]:
    """Return the names of the convolutions and linear layers after which no other one comes."""
    reached, last = set[str](), set[str]()
    for node in reversed(graph.get_ordered_ops()):
        if node.get_type_name() != "Result" and node.get_name() not in reached:
            continue
        if weight_of(node) is not None:
            last.add(node.get_name())
        else:
            reached |= {value.get_node().get_name() for value in node.input_values()}
    return last
