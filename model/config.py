"""Read config files of diffusers into frozen dataclasses, and refuse by name what they ask for and is unsupported."""

import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar, Union, get_args, get_origin, get_type_hints

from ldmrt.runtime.errors import LdmrtError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Keys that training leaves in a config: its moving average, and what does nothing when a network is run.
NOTES = {"decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"}
NOTES |= {"attention_dropout", "dropout", "gradient_checkpointing", "use_gradient_checkpointing", "use_checkpoint"}
NOTES |= {"architectures", "dtype", "torch_dtype", "transformers_version"}  # and what else programs note
LARGEST = 2**62  # numbers that torch takes
FEW = 100  # layers that are built in no time, whatever the file holds
# Sizes that say how many layers there are: one number, or one a level, or one a layer of a level.
DEPTHS: tuple[str, ...] = ("layers_per_block", "transformer_layers_per_block", "reverse_transformer_layers_per_block")
DEPTHS += (
    "num_layers",
    "n_layers",
    "n_refiner_layers",
    "num_single_layers",
    "num_hidden_layers",
    "encoder_layers",
    "num_res_blocks",
    "num_encoder_blocks",
    "num_decoder_blocks",
    "encoder_layers_per_block",
    "decoder_layers_per_block",
)
RawConfig = Mapping[str, object]  # a config.json as it was read, of which nothing has been checked
T = TypeVar("T", bound="DataclassInstance")


def from_config(cls: type[T], config: RawConfig, neutral: RawConfig, component: str) -> T:
    """Build the dataclass `cls` from a diffusers config.

    Keys that are fields of `cls` are taken and must have the annotated type. Any other key must have its `neutral`
    value: so an unsupported block is refused before a weight is read. A null asks for nothing, and keys that start
    with "_" are notes.

    Args:
        cls: A frozen dataclass whose fields are annotated with int, float, bool, str, None, tuples and unions of these.
        config: The content of a config.json.
        neutral: For each key that is no field the value that asks for nothing, or a tuple of such values; a list of
            them is accepted too.
        component: The part of the checkpoint that errors name.

    Returns:
        The dataclass, whose own `__post_init__` may refuse the values.

    Raises:
        LdmrtError: A value has another type than its field, a key is unknown, or its value is unsupported.
    """
    hints = get_type_hints(cls)
    names = {field.name for field in dataclasses.fields(cls)}
    values: dict[str, object] = {}
    for key, value in config.items():
        if value is None and key not in names:
            continue
        if key in names:
            plain = False if value is None and hints[key] is bool else _nested(value, tuple)
            if not _fits(plain, hints[key]):
                raise LdmrtError(component, f"config has an invalid {key}", expected=hints[key], found=repr(value))
            values[key] = plain
        elif key.startswith("_") or key in NOTES:
            continue
        elif key not in neutral:
            raise LdmrtError(component, f"unknown config key {key!r}", found=repr(value))
        elif not _neutral(value, neutral[key]):
            problem = f"unsupported {key} in the config"
            raise LdmrtError(component, problem, expected=neutral[key], found=repr(value))
    return cls(**values)


def _neutral(value: object, neutral: object) -> bool:
    """Tell whether a value, or each of a list of them, is the neutral one or one of a tuple of such."""
    allowed = neutral if isinstance(neutral, tuple) else (neutral,)
    return value in allowed or (isinstance(value, list) and bool(value) and all(item in allowed for item in value))


def positive(component: str, config: object, *names: str) -> None:
    """Refuse a config in which one of these fields, or a number in it, is below 1."""
    for name in names:
        value = getattr(config, name)
        if value is not None and min(value if isinstance(value, tuple) else (value,), default=0) < 1:
            raise LdmrtError(component, f"config has an invalid {name}", expected="at least 1", found=value)


def within(component: str, config: object, name: str, least: float, most: float) -> None:
    """Refuse a config in which a number is out of a range."""
    if not least <= (value := getattr(config, name)) <= most:
        expected = f"{least:g} to {most:g}"
        raise LdmrtError(component, f"config has an invalid {name}", expected=expected, found=value)


def check_depth(component: str, config: RawConfig, count: Callable[[], int]) -> None:
    """Refuse a config that asks for more layers than its file has tensors, before they are built.

    `count` tells how many tensors there are. It is called only where a config has more than a few layers: the weights
    need not be there for another fault to be named.
    """
    levels = max((len(value) for value in config.values() if isinstance(value, (list, tuple))), default=0)
    layers_by_name = {"list": float(levels)}
    for name in DEPTHS:
        if (value := config.get(name)) is not None:
            total = sum(_numbers(value))
            layers_by_name[name] = total if isinstance(value, (list, tuple)) else total * max(levels, 1)
    if all(layers <= FEW for layers in layers_by_name.values()):
        return
    most = max(count(), FEW)
    for name, layers in layers_by_name.items():
        if not layers <= most:
            problem, expected = f"config has an invalid {name}", f"at most {most} layers, by the tensors in its file"
            raise LdmrtError(component, problem, expected=expected, found=config.get(name, levels))


def _numbers(value: object) -> Iterator[float]:
    """Yield the numbers in a value, however they are nested."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)):
        yield value


def _nested(value: object, kind: type[list] | type[tuple]) -> object:
    """Turn a list or tuple into `kind`, and those in it too; anything else stays as it is."""
    return kind(_nested(item, kind) for item in value) if isinstance(value, (list, tuple)) else value


def _fits(value: object, hint: type | types.UnionType) -> bool:
    """Tell whether a JSON value has an annotation's type: int, float, bool, str, None, tuples and unions of these."""
    if isinstance(hint, types.UnionType) or get_origin(hint) is Union:
        return any(_fits(value, option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint in (int, float) and isinstance(value, (int, float)) and not -LARGEST <= value <= LARGEST:
        return False  # nor is NaN
    return isinstance(value, (int, float) if hint is float else hint)


# Fields which earlier versions did not write, with the value that asks for nothing. They are left out where
# they have it, so that a bundle's hash of a config stays that of its checkpoint.
LEFT_OUT: RawConfig = {
    "class_embed_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "shift_factor": None,
    "time_embedding_type": "positional",
}


def to_config(class_name: str, config: "DataclassInstance") -> dict[str, object]:
    """Return the content of diffusers' config.json for a dataclass that `from_config` made."""
    values = {field.name: _nested(getattr(config, field.name), list) for field in dataclasses.fields(config)}
    kept = {name: value for name, value in values.items() if name not in LEFT_OUT or value != LEFT_OUT[name]}
    return {"_class_name": class_name, **kept}
