"""Checkpoints stored in float8 and float64, alone or mixed in one file, in every precision of an export."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldmrt.export.components.table import components
from ldmrt.export.precision.policy import apply_precisions, parse
from ldmrt.model import load

STORED = {
    "float8": (torch.float8_e4m3fn,),
    "float64": (torch.float64,),
    "mixed": (torch.float8_e4m3fn, torch.float8_e5m2, torch.float64, torch.float16, torch.bfloat16, torch.float32),
}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("stored", STORED)
def test_every_precision(stored: str, precision: str, checkpoint: Path, tmp_path: Path) -> None:
    folder, kinds = shutil.copytree(checkpoint, tmp_path / "checkpoint"), STORED[stored]
    for path in folder.rglob("*.safetensors"):
        state = sorted(load_file(path).items())
        save_file({key: value.to(kinds[i % len(kinds)]) for i, (key, value) in enumerate(state)}, path)
    found, _ = apply_precisions(lambda dtypes: (load(folder, dtype=dtypes), {}), parse(precision), {})
    assert {part.precision for part in components(found).values()} == {precision}
