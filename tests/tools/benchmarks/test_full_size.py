"""Stable Diffusion 1.5's size, the whole way: minutes, and 9 GB on disk."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow(minutes=3)
def test_stable_diffusion_15_within_memory(tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    steps = [word for step in ("export", "again", "generate") for word in ("--step", step)]
    command = [
        sys.executable,
        "-m",
        "ldmrt.tools.benchmarks.full_size",
        "sd15",
        "--work",
        tmp_path,
        "--side",
        64,  # a row at the usual 256 takes ten times as long
        *steps,
        "--json",
        out,
    ]
    ran = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    numbers = json.loads(out.read_text())
    taken = {row["step"]: row for row in numbers["steps"]}
    assert list(taken) == ["export", "again", "generate"]
    assert numbers["about"]["weights_mb"] > 4200
    assert taken["export"]["peak"] <= numbers["about"]["limit_mb"]
    assert ran.stderr.count("reused") == 4
    assert (tmp_path / "sd15-fp32.png").is_file()
