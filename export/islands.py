"""Islands: modules of a half-precision network that compute in float32, because halves would overflow there.

Found by measuring. What each module gives is measured in float32 while a picture is drawn. Where it comes near the
largest half, the smallest module around it whose own result keeps away from there becomes an island; where there is
none, the whole network stays float32.
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ldmrt.model import Checkpoint
from ldmrt.runtime import LdmrtWarning
from ldmrt.runtime.engines import Engines
from ldmrt.runtime.reference import asked

from .components import Component, components
from .names import module_path
from .record import SIDE, asking, needed
from .reference import torch_pipeline

HALF = 65504.0  # the largest float16
LIMIT = HALF / 2  # another prompt or picture may bring twice the largest value of these
PROMPTS = ("a red apple, noto style, blue background", "an astronaut riding a horse, 4k, highly detailed, (((HDR)))")
STEPS = 8  # rows of each picture, over the whole schedule

Islands = dict[str, dict[str, str]]  # component -> module -> why; the module "" is all of it


def find(checkpoint: Checkpoint, limit: float = LIMIT) -> Islands:
    """The islands of every component that is of float16. Its weights are widened one module at a time."""
    every = components(checkpoint)
    parts = {name: part for name, part in every.items() if part.precision == "fp16"}
    if not parts:
        return {}
    engines = Engines({name: part.engine for name, part in every.items()})
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", LdmrtWarning)  # of prompts that are too long
        ranges = {name: stack.enter_context(measured(part.module)) for name, part in parts.items()}
        pipeline = replace(torch_pipeline(checkpoint), engines=engines)
        side = min(SIDE, pipeline.shape.size)
        for seed, prompt in enumerate(PROMPTS):
            task = pipeline.prepare(**asked(asking(prompt, seed, side, STEPS), needed(every, checkpoint, side)))
            x = task.x
            for state in task.steps():
                x = state.x
            picture = pipeline.decode(x)
            if "vae_encoder" in pipeline.engines:
                pipeline.engines["vae_encoder"](sample=picture.transpose(0, 3, 1, 2) / 127.5 - 1)
    return {name: found for name in parts if (found := climb(ranges[name], limit))}


def climb(ranges: Mapping[str, float], limit: float) -> dict[str, str]:
    """From each module that gives too much to the smallest around it that does not."""
    islands: dict[str, str] = {}
    for name, largest in ranges.items():
        if largest <= limit:
            continue
        around = name
        while around and not ranges.get(around, HALF) <= limit:
            around = around.rpartition(".")[0]
        islands.setdefault(around, f"{name or 'its result'} reaches {largest:.4g} of a half's {HALF:.0f}")
    inside = {name for name in islands for other in islands if name != other and within(name, other)}
    return {name: why for name, why in islands.items() if name not in inside}


def modules_of(module: nn.Module) -> dict[str, nn.Module]:
    """Every module by its path within the network, as the graph names it; "" is the outermost."""
    named = {module_path(name): one for name, one in module.named_modules()}
    return {**named, "": module}


def within(name: str, other: str) -> bool:
    """Whether a module lies inside another."""
    return other == "" or name.startswith(other + ".")


def raise_islands(parts: Mapping[str, Component], islands: Islands) -> None:
    """Let the islands compute in float32: their weights widen, what they take is widened, what they give is halved."""
    for name, modules in islands.items():
        for path in modules:
            module = modules_of(parts[name].module)[path]
            module.float()
            if path:
                module.register_forward_pre_hook(_widen, with_kwargs=True)
                module.register_forward_hook(_halve)


@contextlib.contextmanager
def measured(module: nn.Module) -> Iterator[dict[str, float]]:
    """While the context lasts, a network of halves computes in float32 and the largest |value| that each of its modules
    gave is noted: NaN counts as infinite. Only one module's weights are wide at a time.
    """
    ranges: dict[str, float] = {}
    hooks = [module.register_forward_pre_hook(_widen, with_kwargs=True)]

    def note(name: str) -> Any:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            for one in _tensors(out):
                largest = float(one.abs().max().nan_to_num(nan=float("inf"))) if one.numel() else 0.0
                ranges[name] = max(ranges.get(name, 0.0), largest)

        return hook

    halves: dict[nn.Parameter, Tensor] = {}  # which may lie in a file's mapping, and stay there

    def open_up(leaf: nn.Module, _: Any) -> None:
        for weight in leaf.parameters(recurse=False):
            halves[weight], weight.data = weight.data, weight.data.float()

    def close(leaf: nn.Module, _: Any, __: Any) -> None:
        for weight in leaf.parameters(recurse=False):
            weight.data = halves.pop(weight)

    for name, one in modules_of(module).items():
        hooks.append(one.register_forward_hook(note(name)))
        if any(True for _ in one.parameters(recurse=False)):
            hooks += [one.register_forward_pre_hook(open_up), one.register_forward_hook(close)]
    try:
        yield ranges
    finally:
        for hook in hooks:
            hook.remove()


def _widen(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(map(_float, args)), {name: _float(value) for name, value in kwargs.items()}


def _float(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_float, value))
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value


def _halve(_: nn.Module, __: Any, out: Any) -> Any:
    return type(out)(one.half() for one in out) if isinstance(out, (list, tuple)) else out.half()


def _tensors(out: Any) -> Sequence[Tensor]:
    if isinstance(out, Tensor):
        return [out] if out.is_floating_point() else []
    values = out.values() if isinstance(out, Mapping) else out if isinstance(out, (list, tuple)) else ()
    return [tensor for one in values for tensor in _tensors(one)]
