"""Run a process to its end and measure its time and memory."""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import click


@dataclass(frozen=True)
class Taken:
    """The time of a process in seconds and its peak memory in MB (10^6 bytes)."""

    step: str
    seconds: float
    peak: float


def run(step: str, command: list[str], *, quiet: bool = False) -> Taken:
    """Run a process to its end; its output goes to the standard error, with `quiet` only if it fails.

    Raises:
        LdmrtError: The exit code is not 0.
    """
    from ldmrt.runtime.errors import LdmrtError

    if not quiet:
        click.secho(f"-- {step}", fg="cyan", err=True)
    with tempfile.TemporaryFile("w+") as output:
        begin = time.perf_counter()
        child = subprocess.Popen(command, stdout=output if quiet else sys.stderr, stderr=output if quiet else None)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            output.seek(0)
            click.echo(output.read(), err=True)
            raise LdmrtError(step, "failed", expected="exit code 0", found=child.returncode)
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return Taken(step, seconds, usage.ru_maxrss * kilobyte / 1e6)
