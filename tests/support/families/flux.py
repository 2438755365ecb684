"""FLUX.1 as diffusers' pipelines save it, small and with random weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .stable_diffusion import Config, _text, _vae
from .stable_diffusion_3 import T5, WIDTH, sentencepiece_file

if TYPE_CHECKING:
    import torch

PROMPTS, SEEDS, STEPS = ["a red apple, noto style", "two pears"], [3, 4], 5
ASKED = {"prompt": PROMPTS, "guidance_scale": 3.5, "num_inference_steps": STEPS}
_TRANSFORMER: Config = {
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "pooled_projection_dim": 32,
    "axes_dims_rope": [4, 6, 6],
    "guidance_embeds": True,
}
_VAE = _vae(8, 8, 16, 16, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159)
_VAE |= {"use_quant_conv": False, "use_post_quant_conv": False}
_DYNAMIC = {"shift": 3.0, "use_dynamic_shifting": True, "base_image_seq_len": 8, "max_image_seq_len": 1024}

# The pipeline's class, the transformer's config and the scheduler's.
FLUX: dict[str, tuple[str, Config, Config]] = {
    "dev": ("FluxPipeline", _TRANSFORMER, _DYNAMIC),
    "kontext": ("FluxKontextPipeline", _TRANSFORMER, _DYNAMIC),
    "schnell": ("FluxPipeline", _TRANSFORMER | {"guidance_embeds": False}, {"shift": 1.0}),
    "fill": ("FluxFillPipeline", _TRANSFORMER | {"in_channels": 4 * (2 * 16 + 64), "out_channels": 64}, _DYNAMIC),
    "canny": ("FluxControlPipeline", _TRANSFORMER | {"in_channels": 128, "out_channels": 64}, _DYNAMIC),
}


def save_flux(name: str, folder: Path) -> Path:
    """Write a pipeline of this family into `folder`, as the hub has it, and return the folder."""
    import diffusers
    import torch
    import transformers

    from ..pipelines import _text_encoder, randomise, tokenizer_files

    kind, transformer, scheduler = FLUX[name]
    torch.manual_seed(6)
    for file, content in tokenizer_files("<|endoftext|>").items():
        (place := folder / "tokenizer").mkdir(parents=True, exist_ok=True)
        (place / file).write_bytes(content)
    (second := folder / "tokenizer_2").mkdir()
    (second / "spiece.model").write_bytes(sentencepiece_file())
    parts: dict[str, Any] = {
        "tokenizer": transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "tokenizer_2": transformers.T5TokenizerFast.from_pretrained(second, model_max_length=512),
    }
    size = len(parts["tokenizer_2"]) + 12
    networks: dict[str, Any] = {
        "transformer": diffusers.FluxTransformer2DModel(**transformer),
        "vae": diffusers.AutoencoderKL(**_VAE),
        "text_encoder": _text_encoder(_text(32, "quick_gelu"), "CLIPTextModel"),
        "text_encoder_2": transformers.T5EncoderModel(transformers.T5Config(**T5, vocab_size=size)),
    }
    parts |= {name: randomise(network, seed) for seed, (name, network) in enumerate(networks.items())}
    parts["scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler(**scheduler)
    getattr(diffusers, kind)(**parts).save_pretrained(folder)
    return folder


def latents_of(tokens: "torch.Tensor", height: int, width: int) -> NDArray[np.float32]:
    """Return diffusers' packed latents as latents, by its own function."""
    from diffusers import FluxPipeline

    found: NDArray[np.float32] = FluxPipeline._unpack_latents(tokens, height, width, 8).numpy()
    return found
