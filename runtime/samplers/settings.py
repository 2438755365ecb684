"""Changes to a scheduler's config: another config file, or single keys of its class, typed and checked."""

from difflib import get_close_matches
from pathlib import Path

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject, decode_json, read_json

from .config import KEYS, Config, resolve
from .registry import find_scheduler


def read_scheduler(path: Path) -> JsonObject:
    """Read a scheduler_config.json, or the one in a folder.

    Raises:
        LdmrtError: The file cannot be read, or its class is unsupported.
    """
    config = read_json("scheduler", path / "scheduler_config.json" if path.is_dir() else path)
    find_scheduler(config)  # refuses an unsupported class
    return config


def parse_setting(text: str) -> tuple[str, object]:
    """Parse KEY=VALUE, whose value is JSON, a constant of Python, or plain text.

    Raises:
        LdmrtError: The text is not of this form.
    """
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


def with_settings(config: Config, settings: Config, name: str | None = None) -> JsonObject:
    """Change values in a scheduler's config.

    Args:
        config: A diffusers scheduler config.
        settings: New values of some keys of its class, or of the class with the everyday `name`.
        name: A key of `SCHEDULERS`; None for the class of the config.

    Returns:
        A new config, with the keys that no class knows as they were.

    Raises:
        LdmrtError: A key is not one of the class, or a value is invalid.
    """
    scheduler, asked = find_scheduler(config, name)
    known = KEYS[scheduler.class_name]
    for key in settings:
        if key not in known:
            close = get_close_matches(str(key), known, 1)
            problem, hint = f"{scheduler.class_name} has no {key!r}", close[0] if close else None
            raise LdmrtError("scheduler", problem, expected=", ".join(sorted(known)), hint=hint)
    changed = {**config, **settings}
    if settings:
        resolve({key: value for key, value in {**changed, **asked}.items() if key in known}, scheduler.class_name)
    return changed
