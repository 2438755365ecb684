"""An autoencoder, a text encoder or a ControlNet in a file of its own, against what diffusers reads of it."""

import json
from pathlib import Path
from typing import Any

import diffusers.loaders.single_file_utils as theirs
import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import save_file
from torch import Tensor

from ldmrt.model import load, load_controlnet
from ldmrt.model.checkpoint.families import OPEN_CLIP, Family
from ldmrt.model.checkpoint.original_names import controlnet_place, ldm_modules
from ldmrt.model.networks.unet import UNetConfig
from ldmrt.runtime import LdmrtError

from ...support.ldm import as_written, networks
from ...support.pipelines import randomise

State = dict[str, Tensor]
VAE = "first_stage_model."


@pytest.fixture
def checkpoints(narrow: dict[str, Family]) -> tuple[dict[str, Any], State]:
    """The networks of a narrow 1.x and its file."""
    made = networks(narrow["1.x"])
    return made, as_written(narrow["1.x"], made)


def same(ours: State, expected: State) -> bool:
    bare = {key.removeprefix("text_model."): value for key, value in expected.items()}
    assert {key.removeprefix("text_model.") for key in ours} == bare.keys()
    return all(torch.equal(value, bare[key.removeprefix("text_model.")]) for key, value in ours.items())


def write_part(kind: str, state: State, network: Any, folder: Path, prefix: str) -> Path:
    """One part of a file as people have it: in the original names, in diffusers' or transformers', or as a folder."""
    path = folder / "part.safetensors"
    inside = {key: value.contiguous() for key, value in state.items() if key.startswith(prefix)}
    if kind == "folder":
        network.save_pretrained(folder / "part")
        return folder / "part"
    if kind == "whole":
        save_file(state, path)
    elif kind == "original":
        save_file({key.removeprefix(prefix): value for key, value in inside.items()}, path)
    elif kind == "prefixed, pickled":
        path = folder / "part.pt"
        torch.save({"state_dict": {**inside, f"{VAE}loss.logvar": torch.ones(())}}, path)
    else:
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("kind", ["folder", "whole", "original", "prefixed, pickled", "diffusers"])
def test_autoencoder(
    kind: str, there: bool, checkpoints: tuple[dict[str, Any], State], vocabulary: Path, tmp_path: Path
) -> None:
    """Of a file that lacks one, or in the place of the one that is there."""
    made, state = checkpoints
    changed = {key: value + 1 if key.startswith(VAE) else value for key, value in state.items()}
    with torch.no_grad():
        for value in made["vae"].state_dict().values():
            value.add_(1)
    file = {key: value for key, value in state.items() if there or not key.startswith(VAE)}
    save_file(file, tmp_path / "model.safetensors")
    part = write_part(kind, changed, made["vae"], tmp_path, VAE)
    loaded = load(tmp_path / "model.safetensors", tokenizer=vocabulary, parts={"vae": part})
    assert same(loaded.vae.state_dict(), made["vae"].state_dict())


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("kind", ["folder", "whole", "original", "prefixed, pickled", "transformers"])
def test_text_encoder(
    kind: str, there: bool, checkpoints: tuple[dict[str, Any], State], vocabulary: Path, tmp_path: Path
) -> None:
    made, state = checkpoints
    prefix = "cond_stage_model.transformer."
    changed = {key: value + 1 if key.startswith(prefix) else value for key, value in state.items()}
    with torch.no_grad():
        for value in made["text_encoder"].parameters():
            value.add_(1)
    save_file({k: v for k, v in state.items() if there or not k.startswith(prefix)}, tmp_path / "model.safetensors")
    part = write_part(kind, changed, made["text_encoder"], tmp_path, prefix)
    loaded = load(tmp_path / "model.safetensors", tokenizer=vocabulary, parts={"text_encoder": part})
    assert same(loaded.text_encoders["text_encoder"].state_dict(), made["text_encoder"].state_dict())


@pytest.mark.parametrize("names", ["open_clip", "transformers"])
def test_second_text_encoder(names: str, narrow: dict[str, Family], vocabulary: Path, tmp_path: Path) -> None:
    """clip_g.safetensors, in OpenCLIP's names or in those of transformers, beside CLIP's other half."""
    family = narrow["XL"]
    made = networks(family)
    state, text = as_written(family, made), family.texts["text_encoder_2"]
    assert text.names == OPEN_CLIP
    inside = {key.removeprefix(text.prefix): value for key, value in state.items() if key.startswith(text.prefix)}
    if names == "transformers":
        inside = {key: value.contiguous() for key, value in made["text_encoder_2"].state_dict().items()}
    other = {"visual.positional_embedding": torch.ones(9, 32), "logit_scale": torch.ones(())}
    second, rest = tmp_path / "g.safetensors", tmp_path / "m.safetensors"
    save_file({**inside, **other}, second)
    save_file({key: value for key, value in state.items() if not key.startswith(text.prefix)}, rest)
    loaded = load(rest, tokenizer=vocabulary, parts={"text_encoder_2": second})
    assert same(loaded.text_encoders["text_encoder_2"].state_dict(), made["text_encoder_2"].state_dict())


def test_parts_of_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    """A folder in diffusers' layout takes an autoencoder from another one."""
    other = load(checkpoint)
    with torch.no_grad():
        other.vae.decoder.conv_in.bias.add_(1)
    other.save(tmp_path / "other")
    loaded = load(checkpoint, parts={"vae": tmp_path / "other"})
    assert same(loaded.vae.state_dict(), other.vae.state_dict())


@pytest.mark.parametrize(
    ("part", "state", "message"),
    [
        ("vae", {"x": torch.ones(1)}, "vae: .* holds no vae that fits; expected a weight decoder.conv_in.weight"),
        ("vae", {"decoder.conv_in.weight": torch.ones(1)}, "vae: .* tensors are missing"),
        ("text_encoder", {"x": torch.ones(1)}, "text_encoder: .* holds no text_encoder that fits"),
    ],
)
def test_parts_that_are_none(
    part: str, state: State, message: str, checkpoints: tuple[dict[str, Any], State], vocabulary: Path, tmp_path: Path
) -> None:
    save_file(checkpoints[1], tmp_path / "model.safetensors")
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(LdmrtError, match=message):
        load(tmp_path / "model.safetensors", tokenizer=vocabulary, parts={part: tmp_path / "part.safetensors"})


def controlnet(family: Family) -> tuple[ControlNetModel, State]:
    """diffusers' network of a family, and its file in the original names."""
    known = {"in_channels", "down_block_types", "block_out_channels", "layers_per_block", "norm_num_groups",
             "cross_attention_dim", "attention_head_dim", "use_linear_projection", "transformer_layers_per_block",
             "addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim"}  # fmt: skip
    torch.manual_seed(0)
    made = randomise(ControlNetModel(**{key: value for key, value in family.unet.items() if key in known}), 1)
    modules = ldm_modules(UNetConfig.read(family.unet))
    return made, {controlnet_place(key, modules, "")[0]: value for key, value in made.state_dict().items()}


@pytest.mark.parametrize("kind", ["prefixed", "bare", "whole, pickled", "diffusers", "diffusers with a config"])
@pytest.mark.parametrize("name", ["1.x", "2.x", "XL"])
def test_controlnet(name: str, kind: str, narrow: dict[str, Family], tmp_path: Path) -> None:
    made, state = controlnet(narrow[name])
    converted = theirs.convert_controlnet_checkpoint(dict(state), dict(made.config))
    shared = {key for key in made.state_dict() if not key.startswith("add_embedding.")}  # which it forgets
    assert all(torch.equal(converted[key], made.state_dict()[key]) for key in shared)
    path = tmp_path / "control.safetensors"
    prefixed = {f"control_model.{key}": value for key, value in state.items()}
    if kind == "whole, pickled":
        path = tmp_path / "control.pth"
        torch.save({"state_dict": {**prefixed, "model.diffusion_model.x": torch.ones(1), "betas": torch.ones(1)}}, path)
    else:
        plain = made.state_dict() if kind.startswith("diffusers") else state if kind == "bare" else prefixed
        save_file({key: value.contiguous() for key, value in plain.items()}, path)
    if kind == "diffusers with a config":
        (tmp_path / "config.json").write_text(json.dumps(dict(made.config)))
    ours = load_controlnet(path)
    assert same(ours.state_dict(), made.state_dict())
    for key in ("attention_head_dim", "block_out_channels", "use_linear_projection", "conditioning_channels"):
        value = made.config[key]
        assert getattr(ours.config, key) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"lllite_unet_x.down.0.weight": torch.ones(1)}, "unsupported ControlNet-LLLite file"),
        ({"lora_controlnet": torch.ones(1)}, "unsupported Control-LoRA file"),
        ({"difference": torch.ones(()), "control_model.input_hint_block.0.weight": torch.ones(1)},
         "unsupported ControlNet difference file"),
        ({"task_embedding": torch.ones(2, 2), "controlnet_cond_embedding.conv_in.weight": torch.ones(1)},
         "unsupported ControlNet-Union file"),
        ({"x": torch.ones(1)}, "cannot read .*; found no weight attn2.to_k.weight"),
        ({"x.attn2.to_k.weight": torch.ones(2, 3)}, "cannot read .*; found a context of width 3"),
    ],
)  # fmt: skip
def test_files_that_hold_no_controlnet(state: State, message: str, narrow: dict[str, Family], tmp_path: Path) -> None:
    save_file(state, tmp_path / "control.safetensors")
    with pytest.raises(LdmrtError, match=f"controlnet: {message}"):
        load_controlnet(tmp_path / "control.safetensors")
