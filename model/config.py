"""Config files of diffusers, read into frozen dataclasses and refused by name where they ask for what is not here."""

import dataclasses
import types
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from ldmrt.runtime import LdmrtError

# What training's moving average leaves in a config.
NOTES = {"decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"}
T = TypeVar("T")


def from_config(cls: type[T], config: dict[str, Any], neutral: dict[str, Any], component: str) -> T:
    """Build the dataclass `cls` from a diffusers config.

    Keys that are fields of `cls` are taken and must have the annotated type. Any other key must have its `neutral`
    value, the one that asks for nothing, or one of a tuple of such: so a block that is not here is refused before a
    weight is read. Keys that start with "_" are notes.
    """
    hints = get_type_hints(cls)
    names = {field.name for field in dataclasses.fields(cast(Any, cls))}
    taken: dict[str, Any] = {}
    for key, value in config.items():
        if key in names:
            plain = _nested(value, tuple)
            if not _fits(plain, hints[key]):
                raise LdmrtError(component, f"config has an impossible {key}", expected=hints[key], found=repr(value))
            taken[key] = plain
        elif key.startswith("_") or key in NOTES:
            continue
        elif key not in neutral:
            raise LdmrtError(component, f"unknown config key {key!r}", found=repr(value))
        elif value not in (neutral[key] if isinstance(neutral[key], tuple) else (neutral[key],)):
            problem = f"config asks for {key}, which is not here"
            raise LdmrtError(component, problem, expected=neutral[key], found=repr(value))
    return cls(**taken)


def positive(component: str, config: Any, *names: str) -> None:
    """Refuse a config in which one of these fields, or a number in it, is below 1."""
    for name in names:
        value = getattr(config, name)
        if value is not None and min(value if isinstance(value, tuple) else (value,), default=0) < 1:
            raise LdmrtError(component, f"config has an impossible {name}", expected="at least 1", found=value)


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
    return isinstance(value, (int, float) if hint is float else hint)


def to_config(class_name: str, config: Any) -> dict[str, Any]:
    """The diffusers config file of a dataclass made by `from_config`."""
    return {
        "_class_name": class_name,
        **{field.name: _nested(getattr(config, field.name), list) for field in dataclasses.fields(config)},
    }
