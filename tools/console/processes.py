"""A process that is waited for, and what it took."""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import click


@dataclass(frozen=True)
class Taken:
    """Says what a process took: seconds, and MB (10^6 bytes) at its peak."""

    step: str
    seconds: float
    peak: float


def run(step: str, command: list[str], *, quiet: bool = False) -> Taken:
    """Run a process to its end. What it prints goes to the standard error; where that is `quiet`, only if it fails."""
    from ldmrt.runtime.errors import LdmrtError

    if not quiet:
        click.secho(f"-- {step}", fg="cyan", err=True)
    with tempfile.TemporaryFile("w+") as said:
        begin = time.perf_counter()
        child = subprocess.Popen(command, stdout=said if quiet else sys.stderr, stderr=said if quiet else None)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            click.echo(said.read(), err=True)
            raise LdmrtError(step, "failed", expected="exit code 0", found=child.returncode)
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return Taken(step, seconds, usage.ru_maxrss * kilobyte / 1e6)
