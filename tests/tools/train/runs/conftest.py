"""What trainings that are killed learn from."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ....support.pipelines import save_pipeline


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Five captioned images of two kinds, and a checkpoint."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": f"number {i}", "kind": "ab"[i % 2]}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder, save_pipeline("sd15", tmp_path_factory.mktemp("source"))
