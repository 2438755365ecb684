"""Damage to checkpoints, one function for each kind."""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

STEM = "diffusion_pytorch_model.safetensors"


PARTS = {"unet": STEM, "vae": STEM, "text_encoder": "model.safetensors", "text_encoder_2": "model.safetensors"}


Named = tuple[str, ...]  # of which the message says at least one


@dataclass(frozen=True)
class Target:
    """What is damaged: a folder or a single file, and in it a file of weights of one part."""

    source: Path
    weights: Path
    vocabulary: Path | None  # for a single file

    def change(self, edit: Callable[[dict[str, torch.Tensor]], Named]) -> Named:
        """Read the weights, let them be edited, and write them back."""
        if self.weights.suffix == ".safetensors":
            state = load_file(self.weights)
            named = edit(state)
            save_file(state, self.weights, metadata={"format": "pt"})
        else:
            state = torch.load(self.weights, weights_only=True)
            named = edit(state)
            torch.save(state, self.weights)
        return tuple(name.removeprefix("text_model.") for name in named)


Damage = Callable[[Target, random.Random], Named]


def pick(state: dict[str, torch.Tensor], rng: random.Random, kind: Callable[[torch.Tensor], Any] | None = None) -> str:
    """One of the tensors that a network has a place for."""
    keys = [key for key, value in state.items() if kind is None or kind(value)]
    return rng.choice([key for key in sorted(keys) if "position_ids" not in key])


def cut_off(target: Target, rng: random.Random) -> Named:
    content = target.weights.read_bytes()
    target.weights.write_bytes(content[: rng.randrange(len(content))])
    return (target.weights.name,)


def flip(target: Target, rng: random.Random) -> Named:
    """Another byte somewhere in the header: of a pickle, in the mark of its archive."""
    content = bytearray(target.weights.read_bytes())
    begin, end = 0, 4
    if target.weights.suffix == ".safetensors":
        begin = content.index(b'"dtype"')  # behind the notes, of which nothing depends
        end = content.rindex(b"}", 0, 8 + int.from_bytes(content[:8], "little"))
    place = rng.randrange(begin, end)
    content[place] ^= 1 << rng.randrange(8)
    target.weights.write_bytes(content)
    return (target.weights.name,)


def rename(target: Target, rng: random.Random) -> Named:
    def edit(state: dict[str, torch.Tensor]) -> Named:
        key = pick(state, rng)
        words = key.split(".")
        words[rng.randrange(len(words))] += rng.choice(["x", "0", "_", " "])
        state[".".join(words)] = state.pop(key)
        return key, ".".join(words)

    return target.change(edit)


def turn(target: Target, rng: random.Random) -> Named:
    """Rows for columns, or a line for a matrix."""

    def edit(state: dict[str, torch.Tensor]) -> Named:
        key = pick(state, rng, lambda value: value.ndim > 1 and value.shape[0] != value.shape[1])
        state[key] = rng.choice([state[key].transpose(0, 1), state[key].flatten(), state[key][:1]]).contiguous()
        return (key,)

    return target.change(edit)


def swap(target: Target, rng: random.Random) -> Named:
    """Two tensors of different shapes have each other's name."""

    def edit(state: dict[str, torch.Tensor]) -> Named:
        one = pick(state, rng)
        other = pick(state, rng, lambda value: value.shape != state[one].shape)
        state[one], state[other] = state[other], state[one]
        return one, other

    return target.change(edit)


def plant(target: Target, rng: random.Random) -> Named:
    def edit(state: dict[str, torch.Tensor]) -> Named:
        key = pick(state, rng)
        state[key].view(-1)[rng.randrange(state[key].numel())] = rng.choice([torch.nan, torch.inf, -torch.inf])
        return (key,)

    return target.change(edit)


def lose(target: Target, rng: random.Random) -> Named:
    def edit(state: dict[str, torch.Tensor]) -> Named:
        keys = rng.sample(sorted(state), rng.randrange(1, len(state)))
        keys = sorted({*keys, pick(state, rng)})
        for key in keys:
            del state[key]
        return (target.weights.name,)

    return target.change(edit)


def add(target: Target, rng: random.Random) -> Named:
    def edit(state: dict[str, torch.Tensor]) -> Named:
        key = pick(state, rng) + rng.choice([".lora_A", "_scale", ".weight"])
        state[key] = torch.ones(1)
        return (key,)

    return target.change(edit)


def count(target: Target, rng: random.Random) -> Named:
    """Whole numbers, as what is quantised."""

    def edit(state: dict[str, torch.Tensor]) -> Named:
        key = pick(state, rng)
        state[key] = state[key].to(torch.int8)
        return (key,)

    return target.change(edit)


def replace(target: Target, rng: random.Random) -> Named:
    """Something else under the name of the weights."""
    target.weights.unlink()
    kind = rng.randrange(5)
    if kind == 0:
        target.weights.mkdir()
    elif kind == 1:
        os.symlink("nowhere", target.weights)
    else:
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
        target.weights.write_bytes([b"", b"<!doctype html><p>Access denied</p>", pointer][kind - 2])
    return target.weights.name, f"{target.weights.parent.name}: missing file"


# Part, field and wrong value, and a word of the message; "" for the field itself. Of the tiny checkpoint's configs.
FIELDS: list[tuple[str, str, Any, str]] = [
    ("unet", "in_channels", 5, "unet/config.json is not latent_channels of vae/config.json; expected 4; found 5"),
    ("unet", "in_channels", "4", ""),
    ("unet", "out_channels", 3, "out_channels"),
    ("unet", "block_out_channels", [16], ""),
    ("unet", "block_out_channels", [16, 10**12], "invalid config"),
    ("unet", "block_out_channels", [16, 48], "wrong shape"),
    ("unet", "down_block_types", ["AttnDownBlock2D", "DownBlock2D"], "unsupported AttnDownBlock2D in down_block_types"),
    ("unet", "up_block_types", [], ""),
    ("unet", "cross_attention_dim", 25, "not hidden_size of text_encoder/config.json; expected 24; found 25"),
    ("unet", "layers_per_block", 2, "are missing"),
    ("unet", "layers_per_block", 1.5, ""),
    ("unet", "norm_num_groups", 7, "multiple of 7 groups"),
    ("unet", "attention_head_dim", 0, ""),
    ("unet", "use_linear_projection", True, "wrong shape"),
    ("unet", "class_embed_type", "projection", ""),
    ("unet", "num_class_embeds", 10, "class_embedding"),
    ("unet", "addition_embed_type", "text_time", "lacks addition_time_embed_dim"),
    ("unet", "mid_block_type", "UNetMidBlock2DSimpleCrossAttn", ""),
    ("unet", "transformer_layers_per_block", 2, "are missing"),
    ("unet", "time_cond_proj_dim", 8, "cond_proj"),
    ("unet", "unheard_of", 1, ""),
    ("vae", "latent_channels", 3, ""),
    ("vae", "latent_channels", 6, "expected 6; found 4"),
    ("vae", "block_out_channels", [8, 12], "wrong shape"),
    ("vae", "norm_num_groups", 3, ""),
    ("vae", "scaling_factor", "small", ""),
    ("vae", "down_block_types", ["AttnDownEncoderBlock2D"] * 2, "AttnDownEncoderBlock2D"),
    ("vae", "layers_per_block", 2, "are missing"),
    ("vae", "shift_factor", "much", ""),
    ("text_encoder", "hidden_size", 32, ""),
    ("text_encoder", "hidden_size", 23, "hidden size (23)"),
    ("text_encoder", "num_hidden_layers", 3, "are missing"),
    ("text_encoder", "num_hidden_layers", 1, "unexpected tensors"),
    ("text_encoder", "vocab_size", 10, "does not fit the text encoder"),
    ("text_encoder", "intermediate_size", 64, "wrong shape"),
    ("text_encoder", "hidden_act", "frobnicate", "frobnicate"),
    ("text_encoder", "num_attention_heads", 5, "invalid config"),
    ("text_encoder", "max_position_embeddings", 8, "does not fit the text encoder"),
    ("scheduler", "prediction_type", "x0", ""),
    ("scheduler", "beta_schedule", "sigmoids", ""),
    ("scheduler", "beta_end", "much", "scheduler"),
    ("scheduler", "num_train_timesteps", -1, "scheduler"),
    ("tokenizer", "model_max_length", "many", ""),
    ("tokenizer", "pad_token", "<nothing>", "<nothing>"),
    ("", "unet", ["diffusers", "Transformer2DModel"], "unsupported Transformer2DModel in model_index.json"),
    ("", "scheduler", ["diffusers", "CosineDPMSolverMultistepScheduler"], "CosineDPMSolverMultistepScheduler"),
    ("", "prior", ["diffusers", "PriorTransformer"], "prior"),
    ("", "text_encoder", [None, None], "hidden_size"),
    ("", "tokenizer", "CLIPTokenizer", "tokenizer"),
]


JSON = {
    "": "model_index.json",
    "scheduler": "scheduler/scheduler_config.json",
    "tokenizer": "tokenizer/tokenizer_config.json",
}


def misconfigure(target: Target, rng: random.Random) -> Named:
    part, field, value, word = rng.choice(FIELDS)
    path = target.source / JSON.get(part, f"{part}/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    return (word or field,)


def misspell(target: Target, rng: random.Random) -> Named:
    """A config that is cut off, gone, or no JSON object."""
    path = target.source / rng.choice(
        [*JSON.values(), "unet/config.json", "vae/config.json", "text_encoder/config.json"]
    )
    content = path.read_bytes()
    kind = rng.randrange(4)
    if kind == 0 and "tokenizer" not in path.name:
        path.unlink()
    else:
        path.write_bytes([content[: len(content) // 2], b"[]", b"\xff\xfe{}", b"{" * 5][kind])
    return path.name, path.parent.name


def mistokenize(target: Target, rng: random.Random) -> Named:
    """The vocabulary, gone or not one."""
    folder = target.vocabulary or target.source / "tokenizer"
    kind = rng.randrange(4)
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        if kind == 0 and (folder / name).exists():
            (folder / name).write_text("{}")
        elif kind == 1:
            (folder / name).unlink(missing_ok=True)
    if kind == 2:
        shutil.rmtree(folder)
    elif kind == 3:
        vocabulary = json.loads((folder / "vocab.json").read_text())
        del vocabulary["<|endoftext|>"]
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
    return "vocab.json", "vocabulary"


ANY: list[Damage] = [cut_off, flip, rename, turn, swap, plant, lose, add, count, replace, mistokenize]


FOLDER: list[Damage] = [misconfigure, misconfigure, misspell]  # a single file has no configs
