"""ONNX Runtime's operators for CUDA, written as ONNX functions of standard operators: a CPU has no kernels for them.

They follow the operators' documentation, with sums and products as they stand there.
"""

from pathlib import Path

import onnx
from onnx import helper, parser

ON_CPU = ("MultiHeadAttention", "SkipLayerNormalization")  # that have kernels for the CPU too
FUNCTIONS = """
<ir_version: 10, opset_import: ["" : 23, "plain" : 1]>
model (float[1] x) => (float[1] y) { y = Identity(x) }

<domain: "plain", opset_import: ["" : 23]>
GroupNorm <activation, groups, epsilon, channels_last> (X, gamma, beta) => (Y) {
  x = Cast <to = 1> (X)
  first = Transpose <perm = [0, 3, 1, 2]> (x)
  zero = Constant <value_ints = [0]> ()
  number = Constant <value_int: int = @groups> ()
  column = Constant <value_ints = [1]> ()
  groups = Reshape (number, column)
  rest = Constant <value_ints = [-1]> ()
  shape = Concat <axis = 0> (zero, groups, rest)
  grouped = Reshape (first, shape)
  last = Constant <value_ints = [2]> ()
  mean = ReduceMean (grouped, last)
  apart = Sub (grouped, mean)
  square = Mul (apart, apart)
  variance = ReduceMean (square, last)
  small = Constant <value_float: float = @epsilon> ()
  sum = Add (variance, small)
  deviation = Sqrt (sum)
  normal = Div (apart, deviation)
  whole = Shape (first)
  back = Reshape (normal, whole)
  channels_last = Transpose <perm = [0, 2, 3, 1]> (back)
  scaled = Mul (channels_last, gamma)
  shifted = Add (scaled, beta)
  sigmoid = Sigmoid (shifted)
  silu = Mul (shifted, sigmoid)
  wanted = Constant <value_int: int = @activation> ()
  active = Cast <to = 9> (wanted)
  y = Where (active, silu, shifted)
  Y = CastLike (y, X)
}

<domain: "plain", opset_import: ["" : 23, "plain" : 1]>
SkipGroupNorm <activation, groups, epsilon, channels_last> (X, gamma, beta, skip, bias) => (Y, S) {
  batch = Shape <start = 0, end = 1> (skip)
  channels = Shape <start = -1> (skip)
  between = Shape <start = 1, end = -1> (skip)
  ones = Constant <value_ints = [1, 1]> ()
  padded = Concat <axis = 0> (between, ones)
  zero = Constant <value_ints = [0]> ()
  two = Constant <value_ints = [2]> ()
  area = Slice (padded, zero, two, zero)
  shape = Concat <axis = 0> (batch, area, channels)
  spread = Reshape (skip, shape)
  biased = Add (X, bias)
  S = Add (biased, spread)
  Y = plain.GroupNorm <activation: int = @activation, groups: int = @groups, epsilon: float = @epsilon,
      channels_last: int = @channels_last> (S, gamma, beta)
}

<domain: "plain", opset_import: ["" : 23]>
BiasSplitGelu (X, bias) => (Y) {
  biased = Add (X, bias)
  half, gate = Split <axis = -1, num_outputs = 2> (biased)
  gelu = Gelu (gate)
  Y = Mul (half, gelu)
}
"""


def for_cpu(path: Path, target: Path) -> Path:
    """Write a graph for CUDA to a file beside it, so that a CPU can run it."""
    model = onnx.load(path, load_external_data=False)
    model.functions.extend(parser.parse_model(FUNCTIONS).functions)
    model.opset_import.append(helper.make_opsetid("plain", 1))
    for node in model.graph.node:
        if node.domain == "com.microsoft" and node.op_type not in ON_CPU:
            node.domain = "plain"
    onnx.save(model, target)
    return target
