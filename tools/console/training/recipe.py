"""Keep the options of a training as a recipe, a TOML file that `ldmrt train` takes in place of a training's name.

schema = 1
task = "autoencoder"
data = "data/emoji"
style = ["noto"]
learning_rate = 0.001
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.files.reading import read_bytes
from ldmrt.runtime.nearest import suggestion
from ldmrt.tools.options.common import Group

from .launching import first_prints

RECIPE = "recipe.toml"
SCHEMA = 1
LARGEST = 1 << 20  # bytes
# Options that say where and how a run goes on, and not what it is
NOT_KEPT = {"out", "resume", "change", "processes", "plan", "help"}
KINDS: dict[type, tuple[type | tuple[type, ...], str]] = {
    click.types.IntParamType: (int, "an integer"),
    click.types.FloatParamType: ((int, float), "a number"),
}
Change = tuple[Any, Any]  # the value of an option as TOML has it, and its default; None where it has none


class Trainings(Group):
    """Runs a training by its name, or by a recipe."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; of several processes only the first prints."""
        with first_prints():
            return super().invoke(ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command's name, the command and its arguments, those of a recipe in front.

        Raises:
            LdmrtError: The recipe cannot be read, or says something that its training does not take.
        """
        if str(args[0]).endswith(".toml"):
            args = self._words(ctx, Path(args[0]), args[1:])
        return super().resolve_command(ctx, args)

    def _words(self, ctx: click.Context, path: Path, args: Sequence[str]) -> list[str]:
        """Write a recipe as a command line; options in `args`, and their `--set KEY=VALUE`, come before its own.

        An empty VALUE stands for the option's default.
        """
        recipe = read_recipe(path)
        name, tasks = recipe.pop("task", None), self.list_commands(ctx)
        if name not in tasks:
            problem = f"invalid task in {path}{suggestion(name, tasks) if name else ''}"
            raise LdmrtError("train", problem, expected=", ".join(tasks), found=name or "nothing")
        command = self.get_command(ctx, str(name))
        assert command is not None
        options = options_of(command)
        rest, changed = split_settings(args)
        for key, value in (recipe | changed).items():
            if key in NOT_KEPT:
                hint = f"--{key} on the command line"
                raise LdmrtError("train", f"{key} is no part of a recipe", found=f"{key} = {value!r}", hint=hint)
            if key not in options:
                problem = f"no option {key!r} of {name}{suggestion(key, options)}"
                raise LdmrtError("train", problem, expected=", ".join(options), found=f"{key} = {value!r} in {path}")
        words = [str(name)]
        for key, value in (recipe | changed).items():
            option = options[key]
            if value == "" and key in changed:  # the option's default
                continue
            if not any(word.split("=")[0] in option.opts for word in rest):
                words += _written(path, key, value, option, as_text=key in changed)
        return [*words, *rest]


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe's keys and values.

    Raises:
        LdmrtError: The file is missing, is no TOML, or has a later schema.
    """
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        recipe = tomllib.loads(read_bytes("train", path, LARGEST).decode("utf-8-sig"))
    except ValueError as error:  # of TOML, or of UTF-8
        raise LdmrtError("train", f"cannot read {path}", expected="a recipe in TOML", found=first_line(error)) from None
    schema = recipe.pop("schema", SCHEMA)
    if type(schema) is not int or schema != SCHEMA:
        hint = "a newer ldmrt" if type(schema) is int and schema > SCHEMA else None
        raise LdmrtError("train", f"unsupported schema of {path}", expected=SCHEMA, found=repr(schema), hint=hint)
    return {key.replace("-", "_"): value for key, value in recipe.items()}


def recipe_of(command: click.Command, values: Mapping[str, Any]) -> str:
    """Write a recipe of a training's options, with their defaults.

    Args:
        command: The training.
        values: The values of its parameters, by click's names.
    """
    lines = [f"schema = {SCHEMA}", f"task = {json.dumps(command.name)}"]
    for key, option in options_of(command).items():
        value = values[option.name or ""]
        if value is not None:
            lines.append(f"{key} = {_toml(_plain(value))}")
    return "\n".join(lines) + "\n"


def differing(command: click.Command, values: Mapping[str, Any]) -> dict[str, Change]:
    """Return the options of a training that have another value than their default, by their keys in a recipe.

    Args:
        command: The training.
        values: The values of its parameters, by click's names.
    """
    found = dict[str, Change]()
    for key, option in options_of(command).items():
        value, default = values[option.name or ""], option.default
        plain = None if value is None else _plain(value)
        default = list(default) if isinstance(default, (list, tuple)) else default
        if plain is not None and plain is not False and plain not in ([], default):
            found[key] = (plain, default if isinstance(default, (bool, int, float, str, list)) else None)
    return found


def _plain(value: object) -> object:
    """Return a value as TOML has it: what an option made of a text as that text."""
    if type(value) is tuple:
        return list(map(_plain, value))
    if isinstance(value, dict):
        return [f"{name}={each}" for name, each in value.items()]
    return value if isinstance(value, (bool, int, float)) else str(value)


def _toml(value: object) -> str:
    """Write a string, a number or a list: as JSON, but that TOML has no surrogates, and escapes one character more."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def options_of(command: click.Command) -> dict[str, click.Parameter]:
    """Return the options of a training that a recipe keeps, by their keys."""
    keys = {param.opts[0].lstrip("-").replace("-", "_"): param for param in command.params}
    return {key: param for key, param in keys.items() if key not in NOT_KEPT}


def split_settings(args: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Take every `--set KEY=VALUE` out of a command line; return what is left, and the values by key.

    Raises:
        LdmrtError: What follows `--set` has no equals sign.
    """
    rest, found, words = list[str](), dict[str, str](), iter(args)
    for word in words:
        if word != "--set" and not word.startswith("--set="):
            rest.append(word)
            continue
        pair = word.removeprefix("--set=") if "=" in word else next(words, "")
        key, equals, value = pair.partition("=")
        if not equals:
            raise LdmrtError("train", "invalid --set", expected="KEY=VALUE", found=pair or "nothing")
        found[key.replace("-", "_")] = value
    return rest, found


def _written(path: Path, key: str, value: Any, option: click.Parameter, *, as_text: bool) -> Iterator[str]:
    """Yield an option and its value as words, once for each where it may have several."""
    if isinstance(option, click.Option) and option.is_flag:
        flag = {"true": True, "false": False}.get(value) if as_text else value
        if not isinstance(flag, bool):
            raise LdmrtError("train", f"invalid {key} in {path}", expected="true or false", found=repr(value))
        yield from [option.opts[0]] * flag
        return
    several = value if isinstance(value, list) and option.multiple else [value]
    kinds = [kind for base, kind in KINDS.items() if isinstance(option.type, base)]
    accepted, expected = kinds[0] if kinds else (str, "a string")
    for one in several:
        if not as_text and (isinstance(one, bool) or not isinstance(one, accepted)):
            expected += " or several" if option.multiple else ""
            raise LdmrtError("train", f"invalid {key} in {path}", expected=expected, found=repr(value))
        if "\0" in str(one):
            raise LdmrtError("train", f"invalid {key} in {path}", expected="no null character", found=repr(one))
        yield from (option.opts[0], str(one))
