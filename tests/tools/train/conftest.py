"""Captioned pictures of one's own, for trainings from a checkpoint."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmrt.model.training.tasks import presets
from ldmrt.tools.console.training import checks


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = []
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": ["a red apple", "two pears", "a penguin"][i]}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train networks of a few thousand weights, with previews of four images."""
    config = replace(presets.AUTOENCODER, block_out_channels=(4,) * 4, layers_per_block=1, norm_num_groups=2)
    monkeypatch.setattr(presets, "AUTOENCODER", config)
    monkeypatch.setattr(presets, "UNET", replace(presets.UNET, block_out_channels=(32, 32), norm_num_groups=8))
    monkeypatch.setattr(checks, "SHOWN", 4)
