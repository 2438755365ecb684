"""What LoRA comes in: files of every kind, folders, bundled embeddings, PEFT's patterns; and what is refused."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils.other import get_pattern_key

from ldmrt.model import load
from ldmrt.model.lora.merge import merge, read_lora
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.files.lora.names import matches

from ...support.loras import State, save

LAYER = "lora_unet_conv_in"
FACTORS: State = {
    f"{LAYER}.lora_down.weight": torch.arange(72.0).reshape(2, 4, 3, 3) / 50,
    f"{LAYER}.lora_up.weight": torch.arange(32.0).reshape(16, 2, 1, 1) / 30,
    f"{LAYER}.alpha": torch.tensor(3.0),
}


def pickled(content: Any, path: Path, **options: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    torch.save(content, path, **options)
    return path


CONTAINERS: dict[str, Callable[[Path], Path]] = {
    ".safetensors": lambda folder: save(FACTORS, folder / "a.safetensors"),
    ".bin": lambda folder: pickled(FACTORS, folder / "a.bin"),
    ".pt": lambda folder: pickled(FACTORS, folder / "a.pt"),
    ".pt of old": lambda folder: pickled(FACTORS, folder / "a.pt", _use_new_zipfile_serialization=False),
    ".ckpt with a state dict": lambda folder: pickled({"state_dict": FACTORS, "epoch": 3}, folder / "a.ckpt"),
    "alpha that is a number": lambda folder: pickled(FACTORS | {f"{LAYER}.alpha": 3.0}, folder / "a.bin"),
    "alpha that is a whole number": lambda folder: pickled(FACTORS | {f"{LAYER}.alpha": 3}, folder / "a.bin"),
    "safetensors called .bin": lambda folder: save(FACTORS, folder / "a.bin"),
    "a pickle called .safetensors": lambda folder: pickled(FACTORS, folder / "a.safetensors"),
    "diffusers' folder": lambda folder: save(FACTORS, folder / "x" / "pytorch_lora_weights.safetensors").parent,
    "diffusers' folder of old": lambda folder: pickled(FACTORS, folder / "x" / "pytorch_lora_weights.bin").parent,
    "PEFT's folder": lambda folder: save(FACTORS, folder / "x" / "adapter_model.safetensors").parent,
    "PEFT's folder of old": lambda folder: pickled(FACTORS, folder / "x" / "adapter_model.bin").parent,
    "a folder with one file": lambda folder: save(FACTORS, folder / "x" / "style.safetensors").parent,
}


@pytest.mark.parametrize("name", list(CONTAINERS))
def test_every_container_holds_the_same(name: str, tmp_path: Path) -> None:
    lora = read_lora(CONTAINERS[name](tmp_path))
    (layer,) = lora.layers.values()
    assert layer.delta is not None
    assert layer.scale == 1.5
    product = FACTORS[f"{LAYER}.lora_up.weight"].flatten(1) @ FACTORS[f"{LAYER}.lora_down.weight"].flatten(1)
    torch.testing.assert_close(torch.from_numpy(layer.delta.product()).flatten(1), product)


def itself() -> dict[str, Any]:
    state: dict[str, Any] = {}
    state["state_dict"] = state
    return state


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "a.safetensors")
    return folder / "a.safetensors"


def text(content: bytes, path: Path) -> Path:
    path.write_bytes(content)
    return path


def both(folder: Path) -> Path:
    return save(FACTORS, save(FACTORS, folder / "a.safetensors").with_name("b.safetensors")).parent


huge = torch.zeros(1).expand(10**6, 10**6)
DAMAGED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a list": (lambda f: pickled([torch.ones(2)], f / "a.bin"), "holds no LoRA; expected named tensors; found list"),
    "a text": (lambda f: pickled(FACTORS | {"notes": "x"}, f / "a.bin"), "'notes' in .* is not a tensor; .* found str"),
    "a number as a key": (lambda f: pickled({3: torch.ones(2)}, f / "a.bin"), "3 in .* is not a tensor"),
    "a dict": (lambda f: pickled({"x": {"y": torch.ones(2)}}, f / "a.bin"), "'x' in .* is not a tensor; .* found dict"),
    "a state dict of itself": (lambda f: pickled(itself(), f / "a.bin"), "without an end"),
    "code": (lambda f: pickled({"x": print}, f / "a.bin"), "cannot read .*a.bin; expected tensors alone"),
    "half a file": (lambda f: text(pickled(FACTORS, f / "a.bin").read_bytes()[:900], f / "a.bin"), "cannot read"),
    "more than it holds": (lambda f: pickled(FACTORS | {f"{LAYER}.lora_up.weight": huge}, f / "a.bin"), "holds"),
    "a sparse tensor": (lambda f: pickled({"x": torch.ones(2).to_sparse()}, f / "a.bin"), "unsupported tensor x"),
    "a complex alpha": (
        lambda f: pickled(FACTORS | {f"{LAYER}.alpha": torch.tensor(1j)}, f / "a.bin"), "alpha .* no floating-point"),
    "a huge alpha": (lambda f: pickled(FACTORS | {f"{LAYER}.alpha": 10**400}, f / "a.bin"), "is not a tensor"),
    "a long name": (lambda f: pickled({"x" * 10**6: torch.ones(2)}, f / "a.bin"), "no part of a LoRA; found x{200}$"),
    "a PNG": (lambda f: text(b"\x89PNG\r\n\x1a\n" + bytes(40), f / "a.safetensors"), "found a PNG image"),
    "a web page": (lambda f: text(b"<!DOCTYPE html><html>" + bytes(40), f / "a.safetensors"), "found a web page"),
    "a pointer": (lambda f: text(b"version https://git-lfs.github.com/spec/v1\noid", f / "a.bin"), "Git LFS"),
    "a FIFO": (fifo, "expected a regular file; found a FIFO"),
    "an empty folder": (lambda f: f, "no file to read in .*.*found none"),
    "two files": (both, "no file to read in .*found a.safetensors, b.safetensors"),
    "deep notes": (lambda f: save(FACTORS, f / "a.safetensors", lora_adapter_metadata="[" * 10**5), "cannot read"),
    "no notes": (lambda f: save(FACTORS, f / "a.safetensors", lora_adapter_metadata="[]"), "cannot read the notes"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(DAMAGED))
def test_damaged_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    make, message = DAMAGED[name]
    path = make(tmp_path)
    with pytest.raises(LdmrtError, match=message) as error:
        read_lora(path)
    assert len(str(error.value)) < 1000


MODULE = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"


PATTERNS = ["to_q", "attn1.to_q", "n1.to_q", ".*to_q", "attn[12].to_q", "to_k|to_q", r"attn1\.to_q", "^to_q", MODULE,
            f"^{MODULE}$", "down.*to_q", r"attn\d.to_q", "attn.", "attn1", "", "to-q", "0.attn1.*"]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_as_in_peft(pattern: str) -> None:
    assert matches(pattern, MODULE) == (get_pattern_key([pattern], MODULE) == pattern)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(.*)*x", "a{99999}", "(?=a)", "a" * 10**5, "[", "(", "*"])
def test_expressions_that_may_never_end_are_refused(pattern: str, tmp_path: Path) -> None:
    begin = time.monotonic()
    notes = json.dumps({"unet.lora_alpha": 2, "unet.alpha_pattern": {pattern: 3}})
    state = {key.replace(LAYER, "unet." + "a" * 60): value for key, value in FACTORS.items() if "alpha" not in key}
    with pytest.raises(LdmrtError, match="unsupported regular expression"):
        read_lora(save(state, tmp_path / "a.safetensors", lora_adapter_metadata=notes))
    assert time.monotonic() - begin < 5


def test_many_wildcards_end_soon() -> None:
    begin = time.monotonic()
    assert not matches(".*a" * 160, "a" * 150 + "b")
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("ranks", [{"": 0}, {"conv_in": 0}, {"conv_in": "four"}, {"conv_in": float("nan")}, [3]])
def test_ranks_that_are_none(ranks: Any, tmp_path: Path) -> None:
    state = {"unet.conv_in.lokr_w1": torch.ones(4, 2), "unet.conv_in.lokr_w2": torch.ones(4, 2, 3, 3)}
    notes = json.dumps({"unet.alpha": 2, "unet.r": 0, "unet.rank_pattern": ranks})
    with pytest.raises(LdmrtError, match="invalid notes on conv_in"):
        read_lora(save(state, tmp_path / "a.safetensors", lora_adapter_metadata=notes))


def test_embeddings_that_are_bundled(checkpoint: Path, tmp_path: Path) -> None:
    words = {"bundle_emb.v1.5 pear.string_to_param.*": torch.ones(2, 24), "bundle_emb.apple.clip_l": torch.ones(1, 24),
             "bundle_emb.apple.clip_g": torch.ones(1, 32)}  # fmt: skip
    lora = read_lora(save(FACTORS | words, tmp_path / "a.safetensors"))
    assert sorted((one.token, one.aliases, one.name) for one in lora.embeddings) == [
        ("apple", (), "a.safetensors:apple"),
        ("v1.5 pear", (), "a.safetensors:v1.5 pear"),
    ]
    assert next(one for one in lora.embeddings if one.token == "apple").vectors.keys() == {
        "text_encoder",
        "text_encoder_2",
    }
    assert merge({"unet": load(checkpoint).unet}, [(lora, 1.0)])["loras"][0]["layers"] == {"unet": 1}
    assert len(read_lora(save(words, tmp_path / "b.safetensors")).embeddings) == 2  # and no layer
    with pytest.raises(LdmrtError, match=r"are no part of a LoRA; found bundle_emb\.pear\.x"):
        read_lora(save(FACTORS | {"bundle_emb.pear.x": torch.ones(2)}, tmp_path / "c.safetensors"))


@pytest.mark.parametrize(("letter", "part"), [("l", "text_encoder"), ("h", "text_encoder"), ("g", "text_encoder_2")])
def test_text_encoders_as_comfyui_calls_them(letter: str, part: str, tmp_path: Path) -> None:
    """1.x and XL have clip_l, 2.x clip_h, XL clip_g."""
    name = f"text_encoders.clip_{letter}.transformer.text_model.encoder.layers.0.self_attn.q_proj"
    state = {f"{name}.lora_down.weight": torch.ones(2, 24), f"{name}.lora_up.weight": torch.ones(24, 2)}
    lora = read_lora(save(state, tmp_path / "a.safetensors"))
    assert list(lora.layers) == [(part, "encoder_layers_0_self_attn_q_proj")]
