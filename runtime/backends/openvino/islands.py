"""Keeps modules of a graph in float32 where the rest computes in a narrower precision.

OpenVINO has a mark for nodes that stay as they are, which it writes and reads in its own format of networks, IR. Its
Python API makes no such mark, but it passes one on: the one here is read from a network of a single node. Linear layers
with a bias and attention lose their mark where OpenVINO 2026.4 joins them to one node, and stay narrow.
"""

from collections.abc import Callable
from functools import cache

from ldmrt.runtime.errors import LdmrtError

from .api import Model, Node
from .devices import core

MARK = "DisablePrecisionConversion"
KEY = f"{MARK}_0"  # its name on a node
PORT = '<port id="0" precision="FP32"><dim>1</dim></port>'
MARKED = f"""<net name="marked" version="11"><layers>
<layer id="0" name="x" type="Parameter" version="opset1">
  <data shape="1" element_type="f32"/><output>{PORT}</output></layer>
<layer id="1" name="y" type="ReLU" version="opset1">
  <rt_info><attribute name="{MARK}" version="0" value="dynamic:bf16,f16"/></rt_info>
  <input>{PORT}</input><output>{PORT.replace("0", "1", 1)}</output></layer>
<layer id="2" name="z" type="Result" version="opset1"><input>{PORT}</input></layer>
</layers><edges>
<edge from-layer="0" from-port="0" to-layer="1" to-port="0"/>
<edge from-layer="1" from-port="1" to-layer="2" to-port="0"/>
</edges></net>"""


@cache
def _mark() -> object:
    """Return OpenVINO's mark.

    Raises:
        LdmrtError: This OpenVINO does not know it.
    """
    nodes = core().read_model(MARKED.encode()).get_ops()
    found = [node.get_rt_info()[KEY] for node in nodes if KEY in node.get_rt_info()]
    if not found:
        problem, hint = "this OpenVINO keeps no modules in float32", "pip install -U openvino, or --compute fp32"
        raise LdmrtError("backend", problem, hint=hint)
    return found[0]


def keep_in_float32(graph: Model, in_float32: Callable[[str], bool]) -> None:
    """Mark the nodes of some modules, so that they compute in float32.

    Args:
        graph: A graph whose nodes are called `<module>/<operator>`, before it is compiled.
        in_float32: Tells of a module's path within the network whether it computes in float32.
    """
    for node, path in modules_of(graph):
        if in_float32(path):
            node.set_rt_info(_mark(), KEY)


def modules_of(graph: Model) -> list[tuple[Node, str]]:
    """List the nodes of a graph with the path of the module that each comes from.

    Of the nodes that the reader of ONNX makes of one, some have names of their own; they are of the module that uses
    them. Others add a word to the name, as in `conv/Conv/WithoutBiases`.
    """
    paths: dict[str, str] = {}
    for node in reversed(graph.get_ordered_ops()):
        path, slash, _ = node.get_friendly_name().partition("/")
        users = (target.get_node().get_name() for out in node.outputs() for target in out.get_target_inputs())
        paths[node.get_name()] = path if slash else min((paths[user] for user in users if user in paths), default="")
    return [(node, paths[node.get_name()]) for node in graph.get_ordered_ops()]
