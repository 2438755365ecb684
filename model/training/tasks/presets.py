"""Define the shapes of the demo model, 64x64 images of 8x8 latents, of its upscaler and of a U-Net in pixels."""

from ldmrt.model.networks.autoencoder import AutoencoderConfig
from ldmrt.model.networks.plain_unet import PlainUNetConfig
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

FLOW_SCHEDULER: JsonObject = {  # one that diffusers' StableDiffusionPipeline takes
    "_class_name": "DPMSolverMultistepScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 1.0,
    "final_sigmas_type": "zero",
}

UNCONDITIONAL = PlainUNetConfig(
    sample_size=64,
    down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    block_out_channels=(64, 128, 192),
    layers_per_block=1,
    norm_num_groups=32,
    attention_head_dim=32,
)

UNCONDITIONAL_SCHEDULER: JsonObject = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": True,
    "variance_type": "fixed_small",
    "prediction_type": "epsilon",
}

CLASSES = PlainUNetConfig(
    sample_size=8,
    in_channels=16,
    out_channels=16,
    down_block_types=("AttnDownBlock2D",) * 2,
    up_block_types=("AttnUpBlock2D",) * 2,
    block_out_channels=(96, 192),
    layers_per_block=1,
    norm_num_groups=32,
    attention_head_dim=32,
)

UPSCALER = PlainUNetConfig(
    sample_size=128,
    in_channels=6,  # the state, and the small image enlarged
    out_channels=3,
    down_block_types=("DownBlock2D",) * 4,
    up_block_types=("UpBlock2D",) * 4,
    block_out_channels=(32, 64, 96, 128),
    layers_per_block=1,
    norm_num_groups=2,  # one would be a sum of half a million numbers in float32
    norm_eps=1.0,  # a norm that hardly depends on the image, so that parts of it and the whole are drawn alike
    add_attention=False,  # so that it works at any size
    num_class_embeds=64,  # levels of noise
)

UPSCALER_SCHEDULER: JsonObject = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "set_alpha_to_one": True,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
    "prediction_type": "sample",
}

NOISER: JsonObject = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}
