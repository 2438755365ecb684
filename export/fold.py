"""The folded step, unet/step.onnx: a U-Net, guidance and a sampler's row in one graph, of the U-Net's weights.
State in, state out: between two calls nothing has to come to the host.

    sample   = state[:, 0][idx]                       timestep = timesteps[row][idx]
    m        = weights @ out_sample
    state'   = table[row] @ (m, state, noise[row])    row' = row + 1

Each latent has its own row number, times and table (`Plan.folded`), so pictures of different samplers share a call.
"""

from pathlib import Path
from typing import Any

from ldmrt.runtime.bundle import STEP

from .valid import check_graph


def fold(path: Path) -> Path | None:
    """Write STEP beside the U-Net's graph at `path`, which keeps its weights; None where the U-Net says more than noise
    (a learned variance) or is told something by controls, which change from row to row.
    """
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    inputs = {value.name: value for value in graph.input}
    (said,) = graph.output
    channels, seen = _dims(said)[1], _dims(inputs["sample"])
    extra = seen[1] - channels
    if extra < 0 or any("residual" in name for name in inputs):
        return None
    area, dtype = seen[2:], inputs["sample"].type.tensor_type.elem_type

    float32, int64 = TensorProto.FLOAT, TensorProto.INT64
    new = {
        "state": (float32, ["batch", "saved", channels, *area]),
        "row": (int64, ["batch"]),
        "timesteps": (float32, ["batch", "rows"]),
        "table": (float32, ["batch", "rows", "saved", "terms"]),
        "noise": (float32, ["batch", "draws", channels, *area]),
        "idx": (int64, ["calls"]),
        "weights": (float32, ["batch", "calls"]),
    }
    if extra:
        new["beside"] = (dtype, ["calls", extra, *area])
    told = [value for name, value in inputs.items() if name not in ("sample", "timestep")]
    for value in told:
        value.type.tensor_type.shape.dim[0].dim_param = "calls"

    before, after = _Nodes("before"), _Nodes("after")
    one = before.constant("one", [1])
    row = before("Unsqueeze", "row", one)  # (batch, 1)
    times = before("GatherND", "timesteps", row, batch_dims=1)  # (batch,)
    x = before("Gather", "state", before.constant("first", 0), axis=1)
    sample = before("Cast", before("Gather", x, "idx", axis=0), to=dtype)
    if extra:
        sample = before("Concat", sample, "beside", axis=1)
    before("Identity", sample, out="sample")
    before("Gather", times, "idx", axis=0, out="timestep")

    rows = after.constant("rows", [0, -1])
    out = after("Reshape", after("Cast", said.name, to=float32), rows)  # (calls, numbers)
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
    graph.input.extend([*(helper.make_tensor_value_info(name, *kind) for name, kind in new.items()), *told])
    word = (float32, ["batch", channels, *area])
    made = {"new_state": new["state"], "new_row": new["row"], "said": word}
    graph.output.extend(helper.make_tensor_value_info(name, *kind) for name, kind in made.items())
    del graph.value_info[:]
    folded = path.with_name(STEP)
    onnx.save(model, str(folded))
    check_graph("unet", "the folded step", folded)
    return folded


class _Nodes:
    """Nodes in the order that they run, and their constants."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        from onnx import helper

        name = f"step/{self._prefix}/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out or name], name=name, **attributes))
        return out or name

    def constant(self, name: str, value: Any) -> str:
        import numpy as np
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.array(value, np.int64), f"step/{self._prefix}/{name}"))
        return str(self.constants[-1].name)


def _dims(value: Any) -> list[Any]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
