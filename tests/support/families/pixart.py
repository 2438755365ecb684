"""PixArt-Sigma and PixArt-Alpha as diffusers' pipelines save them, small and with random weights."""

from pathlib import Path
from typing import Any

from .stable_diffusion import Config, _vae
from .stable_diffusion_3 import T5, WIDTH, sentencepiece_file

LESS = 0.5
_TRANSFORMER: Config = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "attention_head_dim": 12,
    "num_attention_heads": 4,
    "cross_attention_dim": 48,
    "caption_channels": WIDTH,
    "interpolation_scale": 0.5,
    "use_additional_conditions": False,
}
_ALPHA = _TRANSFORMER | {"sample_size": 128, "interpolation_scale": None, "use_additional_conditions": None}
_DPM = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.005, "solver_order": 2}

# The pipeline's class, the transformer's config and the autoencoder's.
PIXART: dict[str, tuple[str, Config, Config]] = {
    "sigma": ("PixArtSigmaPipeline", _TRANSFORMER, _vae(8, 8, 16, scaling_factor=0.13025)),
    "alpha": ("PixArtAlphaPipeline", _ALPHA, _vae(8, 8, 16)),
}


def save_pixart(name: str, folder: Path) -> Path:
    """Write a pipeline of this family into `folder`, as the hub has it, and return the folder."""
    import diffusers
    import torch
    import transformers

    from ..pipelines import randomise

    kind, transformer, vae = PIXART[name]
    torch.manual_seed(7)
    (place := folder / "tokenizer").mkdir(parents=True)
    (place / "spiece.model").write_bytes(sentencepiece_file())
    tokenizer = transformers.T5TokenizerFast.from_pretrained(place, model_max_length=512)
    networks: dict[str, Any] = {
        "transformer": diffusers.PixArtTransformer2DModel(**transformer),
        "vae": diffusers.AutoencoderKL(**vae),
        "text_encoder": transformers.T5EncoderModel(transformers.T5Config(**T5, vocab_size=len(tokenizer) + 12)),
    }
    parts = {name: randomise(network, seed) for seed, (name, network) in enumerate(networks.items())}
    with torch.no_grad():
        parts["transformer"].proj_out.weight.mul_(LESS)  # else latents grow a hundredfold
    scheduler = diffusers.DPMSolverMultistepScheduler(**_DPM)
    getattr(diffusers, kind)(tokenizer=tokenizer, scheduler=scheduler, **parts).save_pretrained(folder)
    return folder
