"""Lower an exported program for torch's ONNX exporter without tracing it a second time.

The exporter calls `ExportedProgram.run_decompositions`, which traces a network again, although our networks use few
operators that it changes. Those are written here as it writes them, so the graph stays the same, byte for byte.
"""

import contextlib
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

aten = torch.ops.aten
Known = torch._ops.OpOverload
# Operators that torch's own pass leaves as they are, in U-Nets, autoencoders, text encoders and Sana's transformer
KEPT = frozenset(
    """
    _assert_scalar.default _assert_tensor_metadata.default abs.default add.Tensor alias.default any.dim
    arange.default argmax.default argmin.default bitwise_not.default cat.default clamp.default conv2d.default
    cos.default div.Tensor embedding.default eq.Scalar exp.default expand.default full_like.default ge.Scalar
    gelu.default group_norm.default gt.Scalar index.Tensor isinf.default layer_norm.default le.Tensor linear.default
    log.default lt.Scalar matmul.default mean.dim mul.Tensor ne.Scalar neg.default new_ones.default pad.default
    permute.default pixel_shuffle.default pixel_unshuffle.default pow.Tensor_Scalar relu.default repeat.default
    repeat_interleave.self_int rsqrt.default scaled_dot_product_attention.default sigmoid.default silu.default
    sin.default slice.Tensor softmax.int sub.Tensor sum.dim_IntList sym_size.int tanh.default transpose.int
    unbind.int unsqueeze.default upsample_nearest2d.vec view.default where.Scalar where.ScalarOther where.self
""".split()
)
CHECKS = (aten._assert_tensor_metadata.default,)  # the exporter removes them


@contextlib.contextmanager
def lowered_once() -> Iterator[None]:
    """Let exports lower a program in place where all its operators are known, else by torch's own pass.

    Where a version of torch has not the functions that this leans on, its own pass stays.
    """
    try:
        from torch._export.passes._node_metadata_hook import _node_metadata_hook, _set_node_metadata_hook  # noqa: F401
        from torch.fx.passes.runtime_assert import insert_deferred_runtime_asserts  # noqa: F401
        from torch.onnx._internal.exporter import _decomp, _fx_passes

        slow, _ = _fx_passes.decompose_with_registry, _decomp.create_onnx_friendly_decomposition_table
    except (ImportError, AttributeError):
        yield
        return

    def decompose(exported_program: torch.export.ExportedProgram, registry: Any) -> torch.export.ExportedProgram:
        """Lower a program for the operators that the exporter translates."""
        return exported_program if decompose_in_place(exported_program, registry) else slow(exported_program, registry)

    _fx_passes.decompose_with_registry = decompose
    try:
        yield
    finally:
        _fx_passes.decompose_with_registry = slow


def decompose_in_place(program: torch.export.ExportedProgram, registry: Any) -> bool:
    """Lower a program in place.

    Args:
        program: What `torch.export` gives.
        registry: The exporter's translations.

    Returns:
        Whether it was lowered; else it is as before, as it has an operator that only torch's own pass can lower.
    """
    from torch._export.passes._node_metadata_hook import _node_metadata_hook, _set_node_metadata_hook
    from torch.fx.passes.runtime_assert import insert_deferred_runtime_asserts
    from torch.onnx._internal.exporter import _decomp

    translated = set(_decomp.get_onnx_implemented_overloads(registry))
    decomposed = _decomp.create_onnx_friendly_decomposition_table(translated)
    module, graph = program.graph_module, program.graph
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    if not all(_known(node, decomposed) for node in nodes):
        return False
    for node in nodes:
        if node.target in LOWERED:
            with graph.inserting_before(node):
                same = LOWERED[node.target](node)
            if same is not None:
                program.graph_signature.replace_all_uses(node.name, same.name)
                node.replace_all_uses_with(same)
                graph.erase_node(node)
    graph.eliminate_dead_code()
    fakes = [value.fake_mode for node in graph.nodes if (value := node.meta.get("val")) is not None and _tensor(value)]
    if fakes and (sizes := fakes[0].shape_env) is not None:  # one node for each size, made of the inputs' sizes
        trace = 'File "torch/fx/passes/runtime_assert.py", line 24, in insert_deferred_runtime_asserts'
        with _set_node_metadata_hook(module, partial(_node_metadata_hook, metadata={"stack_trace": trace})):
            insert_deferred_runtime_asserts(module, sizes, "exported program", export=True)
    for node in reversed(list(graph.nodes)):  # as a trace has them: where the tensor is made
        if node.target is aten.sym_size.int and (x := node.args[0]).op == "call_function":
            x.append(node)
            _noted(x, node, node.meta["val"])
    module.recompile()
    return True


def _tensor(value: object) -> bool:
    """Whether a node's value is a tensor that is traced."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(value, FakeTensor)


def _known(node: Any, decomposed: dict[Any, Any]) -> bool:
    """Whether a node stays as it is or is one of `LOWERED`."""
    target = node.target
    if not isinstance(target, Known):  # arithmetic of sizes, `getitem`, or a control flow
        sized = isinstance(node.meta.get("val"), torch.SymInt) and any(
            user.target is aten.reshape.default for user in node.users
        )
        return not isinstance(target, torch._ops.OperatorBase) and not sized  # a trace may take the size from elsewhere
    if target in LOWERED:
        return _tensor(node.args[0].meta.get("val")) and _plain(node)
    return target in CHECKS or (str(target).removeprefix("aten.") in KEPT and target not in decomposed)


def _plain(node: Any) -> bool:
    """Whether a node of `LOWERED` has arguments that its function knows."""
    if node.target is aten.chunk.default:
        x, _, axis = _bound(node, None, None, 0)
        return isinstance(x.meta["val"].shape[axis], int)
    if node.target in (aten.unflatten.int, aten.reshape.default):
        sizes: Sequence[Any] = node.args[-1]
        first = node.args[1] % node.args[0].meta["val"].ndim if len(node.args) == 3 else 0
        inferred = node.meta["val"].shape[first : first + len(sizes)]
        return all(isinstance(size, torch.fx.Node) or _inferred(node, inferred[i]) for i, size in enumerate(sizes))
    if (node.target is aten.dropout.default and node.args[2]) or node.kwargs.get("alpha", 1) != 1:
        return False
    if node.target is aten.add_.Tensor:
        x = node.args[0]
        return list(x.users) == [node] and not _alias(x)
    return node.args[0].op != "placeholder" or all(user.op != "output" for user in node.users)


def _alias(node: Any) -> bool:
    """Whether a node may give memory that another one gives too."""
    return not isinstance(node.target, Known) or any(value.alias_info for value in node.target._schema.returns)


def _bound(node: Any, *defaults: Any) -> tuple[Any, ...]:
    """Return a node's arguments, with the defaults of those that are left out; the first of all has none."""
    return (*node.args, *defaults[len(node.args) :])


def _size(user: torch.fx.Node, x: torch.fx.Node, axis: int) -> Any:
    """Return a tensor's size on an axis, as its user needs it: a number, or a node that gives it."""
    size = x.meta["val"].shape[axis]
    if isinstance(size, int):
        return size
    return _noted(user, x.graph.call_function(aten.sym_size.int, (x, axis)), size)


def _inferred(node: torch.fx.Node, size: Any) -> Any:
    """Return a size that `-1` stands for: a number, an earlier node that gives it, or None where there is none."""
    if isinstance(size, int):
        return size
    earlier = itertools.takewhile(lambda other: other is not node, node.graph.nodes)
    for other in earlier:
        value = other.meta.get("val")
        if isinstance(value, torch.SymInt) and value.node.expr == size.node.expr:
            return other
    return None


def _noted(like: torch.fx.Node, node: Any, value: Any) -> torch.fx.Node:
    """Note on a new node what it gives. It stands in the same module as another."""
    node.meta |= {key: like.meta[key] for key in ("nn_module_stack", "stack_trace") if key in like.meta}
    node.meta["val"] = value
    return node


def _view(node: Any, sizes: list[Any]) -> None:
    """Turn a node into a view of its tensor, or of a copy in whose memory that shape can be read."""
    x, node.target, node.kwargs = node.args[0], aten.view.default, {}
    try:
        x.meta["val"].view(node.meta["val"].shape)
    except (RuntimeError, ValueError):
        node.target = aten._unsafe_view.default
        copy = node.graph.call_function(aten.clone.default, (x,), {"memory_format": torch.contiguous_format})
        x = _noted(node, copy, x.meta["val"].contiguous())
    node.args = (x, sizes)


def _flatten(node: Any) -> None:
    """Lower `aten::flatten(x, start_dim, end_dim)`."""
    x, start, end = _bound(node, None, 0, -1)
    axes = x.meta["val"].ndim
    start, end = start % axes, end % axes
    sizes = [_size(node, x, axis) for axis in range(axes)]
    whole = sizes[start]
    for size, axis in zip(sizes[start + 1 : end + 1], range(start + 1, end + 1), strict=True):
        if isinstance(whole, int) and isinstance(size, int):
            whole *= size
        else:
            value = math.prod(x.meta["val"].shape[start : axis + 1])
            whole = _noted(node, node.graph.call_function(operator.mul, (whole, size)), value)
    _view(node, [*sizes[:start], whole, *sizes[end + 1 :]])


def _unflatten(node: Any) -> None:
    """Lower `aten::unflatten(x, dim, sizes)`."""
    x, axis, parts = node.args
    axes = x.meta["val"].ndim
    axis = axis % axes
    shape = node.meta["val"].shape[axis:]
    inner = [_inferred(node, shape[i]) if isinstance(size, int) else size for i, size in enumerate(parts)]
    outer = [_size(node, x, other) if other != axis else None for other in range(axes)]
    _view(node, [*outer[:axis], *inner, *outer[axis + 1 :]])


def _reshape(node: Any) -> None:
    """Lower `aten::reshape(x, sizes)`."""
    shape = node.meta["val"].shape
    _view(node, [_inferred(node, shape[i]) if isinstance(size, int) else size for i, size in enumerate(node.args[1])])


def _chunk(node: Any) -> None:
    """Lower `aten::chunk(x, chunks, dim)`."""
    x, chunks, axis = _bound(node, None, None, 0)
    node.target, node.kwargs = aten.split.Tensor, {}
    node.args = (x, -(-x.meta["val"].shape[axis] // chunks), axis)


def _to(node: Any) -> torch.fx.Node | None:
    """Lower `aten::to` of a number format: a tensor that has it stays."""
    x = node.args[0]
    dtype = node.meta["val"].dtype
    if x.meta["val"].dtype == dtype:  # also a copy that is asked for: nothing is changed in place
        return x
    node.target, node.args, node.kwargs = aten._to_copy.default, (x,), {"dtype": dtype}
    return None


def _same(node: Any) -> torch.fx.Node:
    """Lower an operator that changes no number: a copy, or a dropout while nothing is trained."""
    return node.args[0]


def _renamed(target: Known) -> Callable[[torch.fx.Node], None]:
    """Return what lowers an operator that has another with the same arguments."""

    def lower(node: torch.fx.Node) -> None:
        node.target = target

    return lower


def _subtracted(node: Any) -> None:
    """Lower `aten::rsub(x, number)`."""
    node.target, node.args, node.kwargs = aten.sub.Tensor, (node.args[1], node.args[0]), {}


def _moved(node: Any) -> None:
    """Lower `aten::movedim(x, source, destination)` of one axis."""
    x, source, destination = node.args
    axes = list(range(x.meta["val"].ndim))
    axes.insert(destination % len(axes), axes.pop(source))
    node.target, node.args = aten.permute.default, (x, axes)


def _transposed(node: Any) -> None:
    """Lower `aten::numpy_T(x)`."""
    x = node.args[0]
    node.target, node.args = aten.permute.default, (x, list(reversed(range(x.meta["val"].ndim))))


def _squared(node: Any) -> None:
    """Lower `aten::square(x)`."""
    node.target, node.args = aten.pow.Tensor_Scalar, (node.args[0], 2)


LOWERED: dict[Any, Callable[[torch.fx.Node], torch.fx.Node | None]] = {
    aten.flatten.using_ints: _flatten,
    aten.unflatten.int: _unflatten,
    aten.reshape.default: _reshape,
    aten.chunk.default: _chunk,
    aten.__and__.Tensor: _renamed(aten.bitwise_and.Tensor),
    aten.__or__.Tensor: _renamed(aten.bitwise_or.Tensor),
    aten.min.other: _renamed(aten.minimum.default),
    aten.clip.default: _renamed(aten.clamp.default),
    aten.rsub.Scalar: _subtracted,
    aten.add_.Tensor: _renamed(aten.add.Tensor),
    aten.movedim.int: _moved,
    aten.numpy_T.default: _transposed,
    aten.square.default: _squared,
    aten.contiguous.default: _same,
    aten.detach_.default: _same,
    aten.dropout.default: _same,
    aten.lift_fresh_copy.default: _same,
    aten.to.dtype: _to,
    aten.to.dtype_layout: _to,
    aten.to.device: _to,
}
