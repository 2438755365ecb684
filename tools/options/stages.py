"""Run a command for every stage of a cascade, each of which is a bundle."""

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click


def every_stage(alone: Callable[[dict[str, Any]], bool]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command with the argument `bundle` run for a bundle, and then for each later stage of it.

    The exit code is the largest of all. A file that is written for a later stage has the stage's name in its own:
    report.html, then report-upscale.html.

    Args:
        alone: Tells by the command's other options whether it runs for the given bundle alone.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(bundle: Path, **options: Any) -> None:
            names = () if alone(options) else _later(bundle)
            codes = []
            for name in (None, *names):
                if names:
                    click.echo(f"stage {name or 'base'}", err=True)
                own = {key: _named(value, name) for key, value in options.items()}
                try:
                    command(bundle=bundle if name is None else bundle / name, **own)
                except SystemExit as end:
                    codes.append(int(end.code or 0))
            if any(codes):
                sys.exit(max(codes))

        return run

    return decorate


def _later(bundle: Path) -> tuple[str, ...]:
    """Name the later stages of a bundle; none where it cannot be opened, which the command itself reports."""
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.errors import LdmrtError

    try:
        return Bundle.open(bundle, check=False).then
    except LdmrtError:
        return ()


def _named(value: Any, stage: str | None) -> Any:
    """Return the path of a file with a stage's name in its own; any other value as it is."""
    return value.with_stem(f"{value.stem}-{stage}") if isinstance(value, Path) and stage else value
