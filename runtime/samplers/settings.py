"""Changes to a scheduler's config: another config file, or single keys of its class, typed and checked."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import decode_json, read_json

from .config import KEYS, resolve
from .registry import find_scheduler


def read_scheduler(path: Path) -> dict[str, Any]:
    """Read a scheduler_config.json, or the one in a folder."""
    config = read_json("scheduler", path / "scheduler_config.json" if path.is_dir() else path)
    find_scheduler(config)  # names a class that is here
    return config


def parse_setting(text: str) -> tuple[str, Any]:
    """Parse KEY=VALUE, whose value is JSON or plain text."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise LdmrtError(
            "scheduler", f"invalid setting {text!r}", expected="KEY=VALUE", hint="timestep_spacing=trailing"
        )
    if value in ("True", "False", "None"):
        value = {"True": "true", "False": "false", "None": "null"}[value]
    try:
        return key, decode_json(value)
    except ValueError:
        return key, value


def with_settings(config: Mapping[str, Any], settings: Mapping[str, Any], name: str | None = None) -> dict[str, Any]:
    """A scheduler's config with other values of some keys of its class, or of the class with the everyday `name`."""
    scheduler, asked = find_scheduler(config, name)
    known = KEYS[scheduler.class_name]
    for key in settings:
        if key not in known:
            close = get_close_matches(str(key), known, 1)
            raise LdmrtError(
                "scheduler", f"{scheduler.class_name} has no {key!r}", expected=", ".join(sorted(known)),
                hint=close[0] if close else None,
            )  # fmt: skip
    changed = {**config, **settings}
    if settings:
        resolve({key: value for key, value in {**changed, **asked}.items() if key in known}, scheduler.class_name)
    return changed
