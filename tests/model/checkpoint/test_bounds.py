"""Checkpoints that ask for what no file of theirs can hold, and those of 2022 that say the wrong size."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from ldmrt.model import load
from ldmrt.runtime import LdmrtError

from ...support.pipelines import save_pipeline

HUGE = 10**6


def changed(checkpoint: Path, folder: Path, part: str, **change: Any) -> Path:
    """A copy of the tiny checkpoint under another config."""
    shutil.copytree(checkpoint, folder)
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return folder


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("unet", {"layers_per_block": HUGE}),
        ("unet", {"layers_per_block": [1, HUGE]}),
        ("unet", {"layers_per_block": 150}),  # two levels of it
        ("unet", {"transformer_layers_per_block": HUGE}),
        ("unet", {"transformer_layers_per_block": [[HUGE], 1]}),
        ("unet", {"reverse_transformer_layers_per_block": [1, HUGE]}),
        ("unet", {"block_out_channels": [16] * HUGE}),
        ("vae", {"layers_per_block": HUGE}),
        ("vae", {"block_out_channels": [8] * HUGE}),
        ("text_encoder", {"num_hidden_layers": HUGE}),
        ("text_encoder", {"num_hidden_layers": 10**30}),
        ("text_encoder", {"layer_norm_eps": float("nan")}),
        ("text_encoder", {"vocab_size": 10**30}),
    ],
)
def test_layers_are_bounded_by_the_file(part: str, change: dict[str, Any], checkpoint: Path, tmp_path: Path) -> None:
    """Before anything is built: a million layers take an hour."""
    folder = changed(checkpoint, tmp_path / "checkpoint", part, **change)
    begin = time.perf_counter()
    with pytest.raises(LdmrtError, match=f"{part}: .*(invalid|wrong shape)"):
        load(folder)
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize(("name", "channels"), [("out_channels", 6), ("out_channels", 1), ("in_channels", 4)])
def test_an_autoencoder_of_other_channels(name: str, channels: int, checkpoint: Path, tmp_path: Path) -> None:
    """LDM3D's makes an image and its depth."""
    folder = changed(checkpoint, tmp_path / "checkpoint", "vae", **{name: channels})
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    layer = "decoder.conv_out" if name == "out_channels" else "encoder.conv_in"
    state = load_file(path)
    if name == "out_channels":
        state |= {f"{layer}.weight": torch.zeros(channels, 8, 3, 3), f"{layer}.bias": torch.zeros(channels)}
    else:
        state |= {f"{layer}.weight": torch.zeros(8, channels, 3, 3)}
    save_file(state, path)
    with pytest.raises(LdmrtError, match=f"vae: unsupported {name}; expected 3, of an RGB image; found {channels}"):
        load(folder)


@pytest.mark.parametrize(
    ("size", "version"),
    [
        *((32, version) for version in ("0.2.2", "0.8.1", "0.9.0.dev0", "0.10.2", "1.0.0", None)),
        (63, "0.8.1"),
        (64, "0.8.1"),
        (96, "0.2.2"),
        ([32, 32], "0.2.2"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_size_of_old_checkpoints(version: str | None, size: Any, old: Path, tmp_path: Path) -> None:
    """As diffusers' pipeline mends it."""
    path = old / "unet" / "config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key != "_diffusers_version"}
    note = {} if version is None else {"_diffusers_version": version}
    path.write_text(json.dumps({**config, "sample_size": size, **note}))
    expected = StableDiffusionPipeline.from_pretrained(old, local_files_only=True).unet.config.sample_size
    found = load(old).unet.config.sample_size
    assert found == (tuple(expected) if isinstance(expected, list) else expected)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline("sd15", tmp_path_factory.mktemp("old") / "sd15")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
@pytest.mark.parametrize(
    "file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json",
             "vae/diffusion_pytorch_model.safetensors"]
)  # fmt: skip
def test_a_fifo_is_not_waited_for(file: str, checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    (folder / file).unlink()
    os.mkfifo(folder / file)
    if file == "tokenizer/vocab.json":
        (folder / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(LdmrtError):
        load(folder)
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(LdmrtError, match="expected a regular file; found a FIFO"):
        load(tmp_path / "model.safetensors", tokenizer=checkpoint)
