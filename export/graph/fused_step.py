"""The fused step, step.onnx: the network that denoises, guidance and a sampler's row in one graph, with its weights.

The state goes in and comes out, so nothing has to come to the host between two calls.

    latents  = state[:, 0][idx]                       timestep = timesteps[row][idx]
    m        = weights @ prediction
    state'   = table[row] @ (m, state, noise[row])    row' = row + 1

Each latent has its own row number, times and table (`Plan.fused`), so images of different samplers share a call.
"""

from pathlib import Path

from ldmrt.runtime.bundle.graphs import STATES, STEP
from ldmrt.runtime.tensors import Specs

from .builder import NodeBuilder, value_info
from .checks import write_graph


def write_fused_step(component: str, path: Path, inputs: Specs, outputs: Specs) -> None:
    """Write step.onnx beside the graph of a network; it refers to the network's weights.

    Args:
        component: The network that denoises, for messages.
        path: The network's model.onnx, which is not changed.
        inputs: The step's inputs, as `step_specs` states them.
        outputs: The step's outputs.

    Raises:
        LdmrtError: ONNX's checker refuses the graph.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    (prediction,) = graph.output
    state, dtype = next((i.name, i.type.tensor_type.elem_type) for i in graph.input if i.name in STATES.values())

    before, after = NodeBuilder("step/before"), NodeBuilder("step/after")
    one = before.constant("one", [1])
    row = before("Unsqueeze", "row", one)  # (batch, 1)
    times = before("GatherND", "timesteps", row, batch_dims=1)  # (batch,)
    x = before("Gather", "state", before.constant("first", 0), axis=1)
    sample = before("Cast", before("Gather", x, "idx", axis=0), to=dtype)
    if any(spec.name == "beside" for spec in inputs):
        sample = before("Concat", sample, "beside", axis=1)
    before("Identity", sample, out=state)
    before("Gather", times, "idx", axis=0, out="timestep")

    rows = after.constant("rows", [0, -1])
    out = after("Reshape", after("Cast", prediction.name, to=onnx.TensorProto.FLOAT), rows)  # (calls, numbers)
    m = after("Reshape", after("MatMul", "weights", out), after("Shape", x), out="said")
    draws = after("Shape", "noise", start=1, end=2)
    z = after("GatherND", "noise", after("Mod", row, draws), batch_dims=1)  # one for all rows where none draws
    axis = after.constant("axis", [1])
    terms = after("Concat", after("Unsqueeze", m, axis), "state", after("Unsqueeze", z, axis), axis=1)
    terms = after("Reshape", terms, after.constant("pictures", [0, 0, -1]))
    moved = after("MatMul", after("GatherND", "table", row, batch_dims=1), terms)
    after("Reshape", moved, after("Shape", "state"), out="new_state")
    after("Add", "row", after.constant("next", 1), out="new_row")

    nodes = [*before.nodes, *graph.node, *after.nodes]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*before.constants, *after.constants])
    graph.input.extend(map(value_info, inputs))
    graph.output.extend(map(value_info, outputs))
    del graph.value_info[:]
    write_graph(component, "the fused step", model, path.with_name(f"{STEP}.onnx"))
