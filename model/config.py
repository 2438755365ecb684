"""Config files of diffusers, read into frozen dataclasses and refused by name where they ask for what is not here."""

import dataclasses
import types
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from ldmrt.runtime.errors import LdmrtError

# What training leaves in a config: its moving average, and what does nothing when a network is run.
NOTES = {"decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"}
NOTES |= {"attention_dropout", "dropout", "gradient_checkpointing", "use_gradient_checkpointing", "use_checkpoint"}
NOTES |= {"architectures", "dtype", "torch_dtype", "transformers_version"}  # and what else programs note
LARGEST = 2**62  # numbers that torch takes
FEW = 100  # layers that are built in no time, whatever the file holds
# Sizes that say how many layers there are: one number, or one a level, or one a layer of a level.
DEPTHS: tuple[str, ...] = ("layers_per_block", "transformer_layers_per_block", "reverse_transformer_layers_per_block")
DEPTHS += ("num_hidden_layers", "num_res_blocks")
T = TypeVar("T")


def from_config(cls: type[T], config: dict[str, Any], neutral: dict[str, Any], component: str) -> T:
    """Build the dataclass `cls` from a diffusers config.

    Keys that are fields of `cls` are taken and must have the annotated type. Any other key must have its `neutral`
    value, the one that asks for nothing, or one of a tuple of such, or a list of them: so a block that is not here is
    refused before a weight is read. A null asks for nothing, and keys that start with "_" are notes.
    """
    hints = get_type_hints(cls)
    names = {field.name for field in dataclasses.fields(cast(Any, cls))}
    taken: dict[str, Any] = {}
    for key, value in config.items():
        if value is None and key not in names:
            continue
        if key in names:
            plain = False if value is None and hints[key] is bool else _nested(value, tuple)
            if not _fits(plain, hints[key]):
                raise LdmrtError(component, f"config has an invalid {key}", expected=hints[key], found=repr(value))
            taken[key] = plain
        elif key.startswith("_") or key in NOTES:
            continue
        elif key not in neutral:
            raise LdmrtError(component, f"unknown config key {key!r}", found=repr(value))
        elif not _neutral(value, neutral[key]):
            problem = f"unsupported {key} in the config"
            raise LdmrtError(component, problem, expected=neutral[key], found=repr(value))
    return cls(**taken)


def _neutral(value: Any, neutral: Any) -> bool:
    """Whether a value, or each of a list of them, is the neutral one or one of a tuple of such."""
    allowed = neutral if isinstance(neutral, tuple) else (neutral,)
    return value in allowed or (isinstance(value, list) and bool(value) and all(one in allowed for one in value))


def positive(component: str, config: Any, *names: str) -> None:
    """Refuse a config in which one of these fields, or a number in it, is below 1."""
    for name in names:
        value = getattr(config, name)
        if value is not None and min(value if isinstance(value, tuple) else (value,), default=0) < 1:
            raise LdmrtError(component, f"config has an invalid {name}", expected="at least 1", found=value)


def within(component: str, config: Any, name: str, least: float, most: float) -> None:
    """Refuse a config in which a number is out of a range."""
    if not least <= (value := getattr(config, name)) <= most:
        expected = f"{least:g} to {most:g}"
        raise LdmrtError(component, f"config has an invalid {name}", expected=expected, found=value)


def check_depth(component: str, config: dict[str, Any], count: Callable[[], int]) -> None:
    """Refuse a config that asks for more layers than its file has tensors, before they are built.

    `count` tells how many tensors there are. It is called only where a config has more than a few layers: the weights
    need not be there for another fault to be named.
    """
    levels = max((len(value) for value in config.values() if isinstance(value, (list, tuple))), default=0)
    asked = {"list": float(levels)}
    for name in DEPTHS:
        if (value := config.get(name)) is not None:
            counts = sum(_numbers(value))
            asked[name] = counts if isinstance(value, (list, tuple)) else counts * max(levels, 1)
    if all(layers <= FEW for layers in asked.values()):
        return
    most = max(count(), FEW)
    for name, layers in asked.items():
        if not layers <= most:
            problem, expected = f"config has an invalid {name}", f"at most {most} layers, by the tensors in its file"
            raise LdmrtError(component, problem, expected=expected, found=config.get(name, levels))


def _numbers(value: Any) -> Iterator[float]:
    """The numbers in a value, however they are nested."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)):
        yield value


def _nested(value: Any, kind: type[list] | type[tuple]) -> Any:
    """A list or tuple as `kind`, and those in it too; anything else as it is."""
    return kind(_nested(item, kind) for item in value) if isinstance(value, (list, tuple)) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value has the type of an annotation: int, float, bool, str, None, tuples and unions of these."""
    if isinstance(hint, types.UnionType) or get_origin(hint) is Union:
        return any(_fits(value, option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint in (int, float) and isinstance(value, (int, float)) and not -LARGEST <= value <= LARGEST:
        return False  # nor is NaN
    return isinstance(value, (int, float) if hint is float else hint)


def to_config(class_name: str, config: Any) -> dict[str, Any]:
    """The diffusers config file of a dataclass made by `from_config`."""
    return {
        "_class_name": class_name,
        **{field.name: _nested(getattr(config, field.name), list) for field in dataclasses.fields(config)},
    }
