"""Config files of diffusers, read into frozen dataclasses and refused by name where they ask for what is not here."""

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

from ldmrt.runtime import LdmrtError

T = TypeVar("T")


def read_json(path: Path, component: str) -> dict[str, Any]:
    """The JSON object in `path`, or an `LdmrtError` that names it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LdmrtError(component, "missing file", expected=path) from None
    except (OSError, ValueError) as error:
        raise LdmrtError(component, f"cannot read {path}", expected="a JSON object", found=error) from None
    if not isinstance(value, dict):
        raise LdmrtError(component, f"cannot read {path}", expected="a JSON object", found=type(value).__name__)
    return value


def from_config(cls: type[T], config: dict[str, Any], neutral: dict[str, Any], component: str) -> T:
    """Build the dataclass `cls` from a diffusers config.

    Keys that are fields of `cls` are taken. Any other key must have its `neutral` value, the one that asks for
    nothing: so a block that is not here is refused before a weight is read. Keys that start with "_" are notes.
    """
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    taken: dict[str, Any] = {}
    for key, value in config.items():
        if key in fields:
            taken[key] = tuple(value) if isinstance(value, list) else value
        elif key.startswith("_"):
            continue
        elif key not in neutral:
            raise LdmrtError(component, f"unknown config key {key!r}", found=repr(value))
        elif value not in (neutral[key], None):
            raise LdmrtError(
                component,
                f"config asks for {key}, which is not here",
                expected=neutral[key],
                found=repr(value),
            )
    try:
        return cls(**taken)
    except (TypeError, ValueError) as error:
        raise LdmrtError(component, "impossible config", found=error) from None


def to_config(class_name: str, config: Any) -> dict[str, Any]:
    """The diffusers config file of a dataclass made by `from_config`."""
    plain = {
        key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(config).items()
    }
    return {"_class_name": class_name, **plain}
