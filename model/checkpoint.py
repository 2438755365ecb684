"""A latent diffusion model on disk, in diffusers' folder layout."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from ldmrt.runtime import LdmrtError, write_atomically
from ldmrt.runtime.errors import first_line
from ldmrt.runtime.tokenizer import Tokenizer

from .autoencoder import Autoencoder, AutoencoderConfig
from .config import read_json, to_config
from .unet import UNet, UNetConfig

WEIGHTS = {"unet": "diffusion_pytorch_model.safetensors", "vae": "diffusion_pytorch_model.safetensors"}
TEXT_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """The three networks, the tokenizer's files and the scheduler's config. Weights are float32 in memory."""

    unet: UNet
    vae: Autoencoder
    text_encoder: Any  # transformers.CLIPTextModel
    tokenizer: dict[str, bytes] = field(repr=False)  # file name -> content
    scheduler: dict[str, Any]

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write diffusers' layout; model_index.json comes last."""
        save_network(folder / "unet", self.unet, to_config("UNet2DConditionModel", self.unet.config), dtype)
        save_network(folder / "vae", self.vae, to_config("AutoencoderKL", self.vae.config), dtype)
        text_config = {**self.text_encoder.config.to_dict(), "architectures": ["CLIPTextModel"]}
        text_config["dtype"] = str(dtype).removeprefix("torch.")
        save_network(folder / "text_encoder", self.text_encoder, text_config, dtype, TEXT_WEIGHTS)
        for name, content in self.tokenizer.items():
            with write_atomically(folder / "tokenizer" / name) as file:
                file.write(content)
        write_json(folder / "scheduler" / "scheduler_config.json", self.scheduler)
        write_json(
            folder / "model_index.json",
            {
                "_class_name": "StableDiffusionPipeline",
                "feature_extractor": [None, None],
                "safety_checker": [None, None],
                "requires_safety_checker": False,
                "scheduler": ["diffusers", self.scheduler["_class_name"]],
                "text_encoder": ["transformers", "CLIPTextModel"],
                "tokenizer": ["transformers", "CLIPTokenizer"],
                "unet": ["diffusers", "UNet2DConditionModel"],
                "vae": ["diffusers", "AutoencoderKL"],
            },
        )


def load(folder: str | Path) -> Checkpoint:
    """Read a checkpoint in diffusers' layout. Configs are checked before any weight is read."""
    folder = Path(folder)
    if not folder.is_dir():
        raise LdmrtError("checkpoint", f"no folder {folder}", expected="a folder in diffusers' layout")
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", "scheduler")
    unet_config = UNetConfig.read(read_json(folder / "unet" / "config.json", "unet"))
    vae_config = AutoencoderConfig.read(read_json(folder / "vae" / "config.json", "vae"))
    text_config = read_json(folder / "text_encoder" / "config.json", "text_encoder")
    tokenizer = {path.name: path.read_bytes() for path in sorted((folder / "tokenizer").glob("*")) if path.is_file()}
    if not tokenizer:
        raise LdmrtError("tokenizer", "missing files", expected=f"{folder / 'tokenizer'}/vocab.json and merges.txt")
    checkpoint = Checkpoint(
        _filled("unet", UNet, unet_config, folder / "unet" / WEIGHTS["unet"]),
        _filled("vae", Autoencoder, vae_config, folder / "vae" / WEIGHTS["vae"]),
        _filled("text_encoder", text_encoder, text_config, folder / "text_encoder" / TEXT_WEIGHTS),
        tokenizer,
        scheduler,
    )
    text = checkpoint.text_encoder.config
    for problem, expected, found in (
        ("in_channels is not the autoencoder's latent_channels", vae_config.latent_channels, unet_config.in_channels),
        (
            "cross_attention_dim is not the text encoder's hidden_size",
            text.hidden_size,
            unet_config.cross_attention_dim,
        ),
    ):
        if expected != found:
            raise LdmrtError("unet", problem, expected=expected, found=found)
    tokens = Tokenizer(tokenizer)
    if tokens.size > text.vocab_size or tokens.length > text.max_position_embeddings:
        expected = f"at most {text.vocab_size} entries and {text.max_position_embeddings} tokens"
        raise LdmrtError(
            "tokenizer", "does not fit the text encoder", expected=expected, found=f"{tokens.size} and {tokens.length}"
        )
    return checkpoint


def text_encoder(config: dict[str, Any]) -> Any:
    """A `CLIPTextModel` of transformers with random weights, in eval mode."""
    from transformers import CLIPTextConfig, CLIPTextModel

    wanted = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    try:
        return CLIPTextModel(CLIPTextConfig(**wanted)).eval()
    except Exception as error:  # transformers checks its configs in many ways
        raise LdmrtError("text_encoder", "impossible config", found=first_line(error)) from None


def load_autoencoder(folder: Path) -> Autoencoder:
    """The autoencoder in FOLDER/vae."""
    config = AutoencoderConfig.read(read_json(folder / "vae" / "config.json", "vae"))
    return _filled("vae", Autoencoder, config, folder / "vae" / WEIGHTS["vae"])


def with_scaling_factor(vae: Autoencoder, scaling_factor: float) -> Autoencoder:
    """The same weights under a config with this scaling factor."""
    vae.config = replace(vae.config, scaling_factor=scaling_factor)
    return vae


def save_network(
    folder: Path, network: nn.Module, config: dict[str, Any], dtype: torch.dtype, name: str = WEIGHTS["unet"]
) -> None:
    """Weights as safetensors of `dtype`, then the config: each replaced at once."""
    state = {key: value.detach().to("cpu", dtype).contiguous() for key, value in network.state_dict().items()}
    if lost := [key for key, value in state.items() if not torch.isfinite(value).all()]:
        raise LdmrtError(folder.name, f"{lost[0]} is not finite in {dtype}", hint="save as float32")
    with write_atomically(folder / name) as file:
        file.write(save(state, metadata={"format": "pt"}))
    write_json(folder / "config.json", config)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Indented JSON, replaced at once."""
    with write_atomically(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())


def _filled(component: str, build: Any, config: Any, path: Path) -> Any:
    """A network in eval mode with the weights of `path`, each checked by name, shape and finiteness."""
    if not path.is_file():
        raise LdmrtError(component, "missing file", expected=path)
    try:
        state = {_bare(key): value for key, value in load_file(path).items()}
    except Exception as error:  # safetensors raises its own class
        raise LdmrtError(component, f"cannot read {path}", expected="a whole safetensors file", found=error) from None
    network = build(config)
    wanted = network.state_dict()
    names = {_bare(key): key for key in wanted}
    state.pop("embeddings.position_ids", None)  # old transformers saved what is no weight
    if missing := sorted(names.keys() - state.keys()):
        raise LdmrtError(component, f"{len(missing)} tensors are missing from {path}", expected=missing[0])
    if surplus := sorted(state.keys() - names.keys()):
        raise LdmrtError(component, f"{len(surplus)} tensors of {path} have no place", found=surplus[0])
    for key, value in state.items():
        if value.shape != wanted[names[key]].shape:
            expected = tuple(wanted[names[key]].shape)
            raise LdmrtError(component, f"wrong shape of {key} in {path}", expected=expected, found=tuple(value.shape))
        if not torch.isfinite(value).all():
            raise LdmrtError(component, f"{key} in {path} is not finite", hint="use another copy of the checkpoint")
    network.load_state_dict({names[key]: value.float() for key, value in state.items()})
    return network.eval()


def _bare(key: str) -> str:
    """A key as it is written today: transformers 5 dropped the prefix of a text encoder's weights, and the hub's
    autoencoders of 2022 name the attention's projections otherwise.
    """
    key = key.removeprefix("text_model.")
    for old, new in ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")):
        key = key.replace(f".attentions.0{old}", f".attentions.0{new}")
    return key
