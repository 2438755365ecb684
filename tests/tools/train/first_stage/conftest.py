"""Small pictures for trainings of an autoencoder."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of noise."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": f"noise {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder
