"""The benchmark of LoRAs at run time: that its files load and its numbers are written. What it measures is no test."""

import json
from pathlib import Path

import pytest

from ldmrt.tools.benchmarks.speed.loras import bench


@pytest.mark.filterwarnings("ignore:.* it has no parity certificate")
def test_numbers_are_written(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "loras.json"
    bench([str(checkpoint), str(bundle), "--steps", "1", "--rounds", "1", "--json", str(out)], standalone_mode=False)
    rows = json.loads(out.read_text())["rows"]
    assert [row["lora"] for row in rows] == ["without", "matrices", "matrices and convolutions"]
    assert rows[0]["ratio"] == 1
    assert all(row["seconds"] > 0 for row in rows)
