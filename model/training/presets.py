"""Define the demo model's shape: 64x64 images, 8x8 latents of 16 channels, 13 million parameters."""

from ldmrt.model.networks.autoencoder import AutoencoderConfig
from ldmrt.model.networks.unet import UNetConfig
from ldmrt.runtime.files.reading import JsonObject

AUTOENCODER = AutoencoderConfig(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(16, 32, 64, 128),
    layers_per_block=2,
    latent_channels=16,
    norm_num_groups=8,
    sample_size=64,
    scaling_factor=1.0,  # measured after training
    force_upcast=False,
)

UNET = UNetConfig(
    sample_size=8,
    in_channels=16,
    out_channels=16,
    down_block_types=("CrossAttnDownBlock2D",) * 2,
    up_block_types=("CrossAttnUpBlock2D",) * 2,
    block_out_channels=(96, 192),
    layers_per_block=1,
    norm_num_groups=32,
    cross_attention_dim=128,
    attention_head_dim=4,
)

TEXT_ENCODER: JsonObject = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "projection_dim": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "hidden_act": "quick_gelu",
}

SCHEDULER: JsonObject = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,  # of no effect on this spacing; diffusers warns of anything else
    "timestep_spacing": "trailing",
    "prediction_type": "epsilon",
}
