"""LoRA files for the tiny checkpoint, made without torch."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

LAYERS = {
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (32, 24),
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (24, 24),
}


def small_lora(path: Path, seed: int) -> Path:
    """Write random factors of rank 2 for one layer of the U-Net and one of the text encoder."""
    rng = np.random.default_rng(seed)
    factors = {
        f"{layer}.lora_{part}.weight": rng.standard_normal(shape, np.float32)
        for layer, (made, width) in LAYERS.items()
        for part, shape in (("up", (made, 2)), ("down", (2, width)))
    }
    save_file(factors, path)
    return path
