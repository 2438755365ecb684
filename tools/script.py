"""What a script of this folder does with an error that a user can cause."""

import sys

import click


def run_script(command: click.Command) -> None:
    """Run it: an `LdmrtError` is one message and exit code 2."""
    from ldmrt.runtime import LdmrtError

    try:
        command()
    except LdmrtError as error:
        click.secho(f"error: {error}", fg="red", err=True)
        sys.exit(2)
