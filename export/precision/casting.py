"""A network that computes in other precisions for a while; its weights are as before when it is over."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ldmrt.export.components.specs import IN_FLOAT32
from ldmrt.export.graph.naming import module_path
from ldmrt.model.weights.mapping import release
from ldmrt.model.weights.unread import is_unread, numbers
from ldmrt.runtime.bundle.graphs import inside

Regions = Sequence[tuple[str, torch.dtype]]  # modules, outer ones first, and what each computes in; the first is ""


@contextlib.contextmanager
def computing(module: nn.Module, regions: Regions) -> Iterator[None]:
    """While the context lasts, each module computes in the precision of the last region that it lies in.

    At a region's border values are cast. A module with weights of its own multiplies and adds in float32, what it
    takes, its weights and what it gives rounded to its precision: as GPUs do it, and a CPU without arithmetic of halves
    is a hundred times slower on its own. Only one module's weights are cast at a time. The network gives float32.
    """
    named = modules_of(module)
    hooks = [module.register_forward_pre_hook(_begin(regions[0][1]), with_kwargs=True)]
    hooks.append(module.register_forward_hook(lambda _, __, out: cast(out, torch.float32)))
    for place, (path, dtype) in enumerate(regions[1:], 1):
        hooks += door(named[path], dtype, _dtype(path, regions[:place]))
    for name, one in named.items():
        if _read_by(one):
            hooks += _opened(one, _dtype(name, regions))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def modules_of(module: nn.Module) -> dict[str, nn.Module]:
    """Every module by its path within the network, as the graph names it; "" is the outermost."""
    named = {module_path(name): one for name, one in module.named_modules()}
    return {**named, "": module}


def door(module: nn.Module, dtype: torch.dtype, outer: torch.dtype) -> list[RemovableHandle]:
    """Cast a module's inputs to its precision and its outputs to the precision around it, and return the hooks.

    The hooks of an inner door on the same module are made later.
    """
    return [
        module.register_forward_pre_hook(lambda _, args, given: cast((args, given), dtype), with_kwargs=True),
        module.register_forward_hook(lambda _, __, out: cast(out, outer), prepend=True),
    ]


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Cast the floating-point tensors in a value to another precision."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        for name, one in value.items():
            value[name] = cast(one, dtype)  # type: ignore[index]
        return value
    return type(value)(cast(one, dtype) for one in value) if isinstance(value, (list, tuple)) else value


def _begin(dtype: torch.dtype) -> Callable[..., tuple[object, dict[str, object]]]:
    """Round what a component takes, but for what stays float32 in every precision."""

    def hook(_: nn.Module, args: object, given: dict[str, object]) -> tuple[object, dict[str, object]]:
        return cast(args, dtype), {n: cast(v, torch.float32 if n in IN_FLOAT32 else dtype) for n, v in given.items()}

    return hook


def _dtype(path: str, regions: Regions) -> torch.dtype:
    return next(dtype for name, dtype in reversed(regions) if name == "" or inside(path, name))


def _read_by(module: nn.Module) -> list[Tensor]:
    """Return the weights that a module reads itself; of its buffers, those that were left unread."""
    inner = getattr(module, "reads_inner_weights", False)
    return [*module.parameters(recurse=inner), *filter(is_unread, module.buffers(recurse=False))]


def _opened(module: nn.Module, dtype: torch.dtype) -> list[RemovableHandle]:
    """Hooks that lend a module its weights in a precision; those in a file, and those left unread, stay as they are."""
    lent: dict[Tensor, Tensor] = {}
    alone = next(module.children(), None) is None

    def open_up(_: nn.Module, args: object, given: object) -> tuple[Any, dict[str, Any]] | None:
        for weight in _read_by(module):
            lent[weight], weight.data = weight.data, numbers(weight).to(dtype)
            if alone:
                weight.data = weight.data.float()
        return cast((args, given), torch.float32) if alone else None

    def close(_: nn.Module, __: object, out: object) -> object:
        for weight, data in lent.items():
            weight.data = data
            release(data)
        lent.clear()
        return cast(out, dtype)

    return [
        module.register_forward_pre_hook(open_up, with_kwargs=True),
        module.register_forward_hook(close, prepend=True, always_call=True),
    ]
