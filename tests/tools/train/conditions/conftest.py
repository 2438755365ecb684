"""Captioned images of two kinds, and the commands that train small networks on them from nothing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmrt.model.training.tasks import presets

from ....support.pipelines import save_pipeline

KINDS = ["pear", "apple", "pear", "pear", "apple"]


@pytest.fixture
def fruit(tmp_path: Path) -> Path:
    """Five captioned images of two kinds."""
    (folder := tmp_path / "fruit").mkdir()
    rows = []
    for i, kind in enumerate(KINDS):
        pixels = np.random.default_rng(i).integers(0, 256, (18, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": f"number {i}", "kind": kind}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture
def pixels(fruit: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """Trains classes in pixels."""
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    small: dict[str, Any] = {"block_out_channels": (16, 32), "norm_num_groups": 4, "attention_head_dim": 8}
    monkeypatch.setattr(presets, "UNCONDITIONAL", replace(presets.UNCONDITIONAL, **small, **blocks))
    words = ("train", "classes", "--data", fruit, "--caption-column", "kind", "--size", 16, "--batch", 2)
    return (*words, "--warmup", 0, "--learning-rate", 1e-2, "--schedule", "constant")


@pytest.fixture
def beside(fruit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """Trains text and classes in latents."""
    small = {"block_out_channels": (16,), "norm_num_groups": 4, "cross_attention_dim": 16, "attention_head_dim": 2}
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    monkeypatch.setattr(presets, "UNET", replace(presets.UNET, **small, **blocks))  # type: ignore[arg-type]
    text = {"hidden_size": 16, "intermediate_size": 32, "projection_dim": 16, "num_attention_heads": 2}
    monkeypatch.setattr(presets, "TEXT_ENCODER", presets.TEXT_ENCODER | text)
    vae = save_pipeline("sd15", tmp_path / "source")
    words = ("train", "ldm", "--data", fruit, "--size", 16, "--batch", 2, "--warmup", 0, "--learning-rate", 1e-2)
    return (*words, "--schedule", "constant", "--vocabulary", 600, "--prediction", "epsilon", "--autoencoder", vae)
