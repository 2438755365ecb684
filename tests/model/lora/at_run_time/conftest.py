"""LoRAs of the tiny checkpoint, and its bundle, opened once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ldmrt.runtime
from ldmrt.runtime import Pipeline

from ....support.loras import ATTENTION, TEXT, adapter, kohya, pipeline, save, tiny_factors

ASKED: dict[str, Any] = {
    "prompt": "two pears", "seed": 3, "num_inference_steps": 3, "output_type": "latent", "guidance_scale": 4.0,
}  # fmt: skip


@pytest.fixture(scope="session")
def every(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of nearly every layer, in PEFT's names."""
    return save(tiny_factors(checkpoint), tmp_path_factory.mktemp("loras") / "every.safetensors")


@pytest.fixture(scope="session")
def attention(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of attention and of the text encoder, in kohya's names with an alpha that is not the rank."""
    torch.manual_seed(11)
    theirs = pipeline(checkpoint)
    unet, text = adapter(theirs.unet, ATTENTION, 4), adapter(theirs.text_encoder, TEXT, 4)
    state = {f"unet.{k}": v for k, v in unet.items()} | {f"text_encoder.{k}": v for k, v in text.items()}
    return save(kohya(state, {"": 3.0}), tmp_path_factory.mktemp("loras") / "attention.safetensors")


@pytest.fixture(scope="module")
def opened(bundle: Path, every: Path, attention: Path) -> Iterator[Pipeline]:
    """The tiny bundle with both loaded, and none chosen."""
    pipeline = ldmrt.runtime.open(bundle, check=False)
    pipeline.load_lora(attention)
    pipeline.load_lora(every, name="every")
    yield pipeline
    pipeline.close()
