"""Captioned pictures of one's own, for trainings from a checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


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
