"""Every JSON file that a user may bring, damaged: one LdmrtError, whatever is wrong with it and whoever reads it."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ldmrt.model import load
from ldmrt.model.checkpoint.folder import read_tokenizer
from ldmrt.model.lora.merge import read_lora
from ldmrt.model.training.data.captioned import ImageFolder
from ldmrt.runtime import Bundle, LdmrtError
from ldmrt.runtime.files.recognise import CHECKPOINT, refuse_other
from ldmrt.runtime.samplers.settings import read_scheduler
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer
from ldmrt.runtime.tokenizer.vocabulary import vocabulary
from ldmrt.tools.emoji.dataset import load_sprites

from ...support.loras import save

DAMAGED = {
    "empty": b"",
    "cut off": b'{"a": 1',
    "a list": b'[{"a": 1}]',
    "null": b"null",
    "a number": b"1e999",
    "a very long number": b'{"a": ' + b"9" * 5000 + b"}",
    "deep": b'{"a":' * 65 + b"1" + b"}" * 65,
    "deep lists": b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}",
    "deeper than Python recurses": b"[" * 100_000 + b"]" * 100_000,
    "no UTF-8": b'{"a": "\xff\xfe"}',
}


def read_words(folder: Path) -> None:
    """As export does."""
    vocabulary(read_tokenizer("tokenizer", folder / "tokenizer"))


def read_all_words(folder: Path) -> None:
    """As the runtime does, too."""
    Tokenizer(read_tokenizer("tokenizer", folder / "tokenizer"))
    read_words(folder)


def read_lora_folder(folder: Path) -> None:
    layer = "base_model.model.unet.conv_in"
    factors = {f"{layer}.lora_A.weight": torch.ones(2, 4, 3, 3), f"{layer}.lora_B.weight": torch.ones(16, 2, 1, 1)}
    save(factors, folder / "adapter_model.safetensors")
    read_lora(folder)


def read_sprites(folder: Path) -> None:
    np.savez(folder / "sprites.npz", sprites=np.zeros((1, 56, 56, 4), np.uint8))
    load_sprites(folder)


# file -> who reads it in its folder
READERS: dict[str, Callable[[Path], object]] = {
    "model_index.json": load,
    "scheduler/scheduler_config.json": load,
    "unet/config.json": load,
    "vae/config.json": load,
    "text_encoder/config.json": load,
    "unet/diffusion_pytorch_model.safetensors.index.json": load,
    **dict.fromkeys(
        (f"tokenizer/{name}.json" for name in ("vocab", "tokenizer_config", "special_tokens_map", "added_tokens")),
        read_all_words,
    ),
    "tokenizer/tokenizer.json": read_words,
    "adapter_config.json": read_lora_folder,
    "sprites.jsonl": read_sprites,
    "metadata.jsonl": ImageFolder.open,
    "ldmrt.json": Bundle.open,
    "scheduler_config.json": lambda folder: read_scheduler(folder / "scheduler_config.json"),
}


@pytest.fixture
def place(request: pytest.FixtureRequest, checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, for what is read of one."""
    folder = tmp_path / "x"
    shutil.copytree(checkpoint, folder) if "/" in request.param or "index" in request.param else folder.mkdir()
    if "safetensors.index" in request.param:
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    return folder / request.param


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("place", READERS, indirect=True)
def test_a_damaged_file_is_one_error(place: Path, damage: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    place.write_bytes(DAMAGED[damage])
    name = request.node.callspec.params["place"]
    if (place.suffix, damage) == (".jsonl", "empty"):
        place.write_bytes(b"{}")
    with pytest.raises(LdmrtError) as caught:
        READERS[name](tmp_path / "x")
    assert 1 <= len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize("number", ["1e400", "NaN", "1" + "0" * 400, "-1"])
@pytest.mark.parametrize("place", READERS, indirect=True)
def test_absurd_numbers_are_read_or_refused(
    place: Path, number: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """In place of every number at once, where there are any: infinite, too large for a float, negative, none."""
    content = place.read_text(encoding="utf-8") if place.exists() else '{"a": 1}'
    place.write_text(re.sub(r"(?<=[:\[ ])-?\d[\d.e+-]*(?=[,\]}\s])", number, content), encoding="utf-8")
    try:
        READERS[request.node.callspec.params["place"]](tmp_path / "x")
    except LdmrtError as error:
        assert len(str(error).splitlines()) <= 2  # noqa: PT017


def test_what_a_folder_is_is_told_without_waiting(tmp_path: Path) -> None:
    """Its config.json is a FIFO, or nests too deeply."""
    os.mkfifo(tmp_path / "config.json")
    refuse_other("export", tmp_path, CHECKPOINT)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_bytes(DAMAGED["deeper than Python recurses"])
    refuse_other("export", tmp_path, CHECKPOINT)
