"""What a GPU lacks for a graph's arithmetic, found before an engine is built in vain.

TensorRT-RTX 1.7.1 was asked to build each kind of node in float32, float16 and bfloat16 for each of its targets. It
builds all but these, for Turing (sm75): nothing in bfloat16, and no matrix product in float32.
"""

from collections.abc import Sequence

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.engine_key import Recipe
from ldmrt.runtime.bundle.engines.targets import TITLES
from ldmrt.runtime.bundle.graphs import STEP
from ldmrt.runtime.errors import LdmrtError

from .activations import read

TURING = "sm75"
PRODUCTS = {"MatMul", "Gemm", "Einsum", "Attention"}


def check_arithmetic(bundle: Bundle, recipes: Sequence[Recipe]) -> None:
    """Raise an `LdmrtError` for the first engine that cannot be built for its GPU."""
    for recipe in recipes:
        if (
            recipe.backend == "tensorrt-rtx"
            and recipe.target == TURING
            and (what := unsupported_arithmetic(bundle, recipe.component))
        ):
            problem = f"{TITLES[recipe.backend]} cannot build it for {TURING}, which has no {what}"
            raise LdmrtError(recipe.component, problem, found=recipe.precision, hint=_hint(bundle, recipe))


def unsupported_arithmetic(bundle: Bundle, graph: str) -> str:
    """Return what Turing lacks for a graph; empty where it has all."""
    import onnx

    model = onnx.shape_inference.infer_shapes(read(bundle.model(graph)))
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    if onnx.TensorProto.BFLOAT16 in types.values():
        return "bfloat16"
    products = [node for node in model.graph.node if node.op_type in PRODUCTS]
    if any(types.get(name) == onnx.TensorProto.FLOAT for node in products for name in node.input):
        return "matrix products in float32"
    return ""


def _hint(bundle: Bundle, recipe: Recipe) -> str:
    if recipe.component == STEP:
        return "leave out --folded: guidance and the sampler's row are products in float32"
    if recipe.precision == "fp16":  # modules that were raised to float32
        return f"another --target than {TURING}, which has float32"
    return f"ldmrt export CHECKPOINT {bundle.path} --precision fp16, or another --target than {TURING}"
