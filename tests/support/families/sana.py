"""Sana as diffusers' pipelines save it, small and with random weights."""

from pathlib import Path
from typing import Any

from .stable_diffusion import Config

WIDTH = 48  # of Gemma's states
LESS = 0.5
_TRANSFORMER: Config = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 6,
    "attention_head_dim": 8,
    "num_layers": 2,
    "num_cross_attention_heads": 4,
    "cross_attention_head_dim": 12,
    "cross_attention_dim": 48,
    "caption_channels": WIDTH,
    "sample_size": 8,
    "timestep_scale": 0.5,
}
# As the larger models of Sana 1.5 and those of 2048 pixels are.
_LARGER = _TRANSFORMER | {
    "qk_norm": "rms_norm_across_heads", "interpolation_scale": 2.0, "out_channels": 8,
}  # fmt: skip
_VAE: Config = {
    "latent_channels": 4,
    "attention_head_dim": 8,
    "encoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock"],
    "decoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock"],
    "encoder_block_out_channels": [8, 8, 16],
    "decoder_block_out_channels": [8, 8, 16],
    "encoder_layers_per_block": [1, 1, 1],
    "decoder_layers_per_block": [1, 1, 1],
    "encoder_qkv_multiscales": [[], [], [5]],
    "decoder_qkv_multiscales": [[], [], [5]],
    "upsample_block_type": "interpolate",
    "downsample_block_type": "Conv",
    "scaling_factor": 0.41407,
}
# As those of the first deep compression autoencoders, with heads as wide as many pixels.
_SHUFFLING = _VAE | {
    "upsample_block_type": "pixel_shuffle", "downsample_block_type": "pixel_unshuffle", "decoder_conv_act_fn": "silu",
    "encoder_layers_per_block": [0, 1, 1], "decoder_layers_per_block": [0, 1, 1], "decoder_act_fns": ["relu"] * 3,
}  # fmt: skip
DPM = {
    "algorithm_type": "dpmsolver++", "solver_order": 2, "flow_shift": 3.0, "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
}  # fmt: skip
_GEMMA: Config = {
    "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "query_pre_attn_scalar": 12,
}  # fmt: skip

WINDOW = 64  # below the tokens that Gemma reads of a prompt; the usual one is above

# The configs of the transformer, the autoencoder and Gemma.
SANA: dict[str, tuple[Config, Config, Config]] = {
    "sana": (_TRANSFORMER, _VAE, _GEMMA | {"sliding_window": WINDOW}),
    "larger": (_LARGER, _SHUFFLING, _GEMMA),
}


def gemma_tokenizer() -> Any:
    """Return a tokenizer of Gemma's class whose vocabulary is learned from the instruction before prompts."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, trainers

    from ldmrt.model.families.sana import INSTRUCTION

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    learner: Any = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    learner.normalizer = normalizers.Replace(" ", "▁")
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=pieces, show_progress=False, max_token_length=40)
    learner.train_from_iterator([INSTRUCTION, INSTRUCTION.lower()], trainer)
    import json

    model = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return transformers.GemmaTokenizer(vocab=model["vocab"], merges=merges, add_bos_token=True)


def save_sana(name: str, folder: Path) -> Path:
    """Write a pipeline of this family into `folder`, as the hub has it, and return the folder."""
    import diffusers
    import torch
    import transformers

    from ..pipelines import randomise

    transformer, vae, text = SANA[name]
    torch.manual_seed(7)
    tokenizer = gemma_tokenizer()
    gemma = transformers.Gemma2Config(**text, vocab_size=len(tokenizer) + 12)
    networks: dict[str, Any] = {
        "transformer": diffusers.SanaTransformer2DModel(**transformer),
        "vae": diffusers.AutoencoderDC(**vae),
        "text_encoder": transformers.Gemma2Model(gemma),
    }
    parts = {name: randomise(network, seed) for seed, (name, network) in enumerate(networks.items())}
    with torch.no_grad():
        parts["transformer"].proj_out.weight.mul_(LESS)
    scheduler = diffusers.DPMSolverMultistepScheduler(**DPM)
    diffusers.SanaPipeline(tokenizer=tokenizer, scheduler=scheduler, **parts).save_pretrained(folder)
    return folder
