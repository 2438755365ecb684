"""Families whose U-Net reads no prompt, in latents or in pixels, as diffusers' pipelines."""

from .stable_diffusion import Family
from .stable_diffusion import _scheduler as scheduler
from .stable_diffusion import _vae as autoencoder

_PLAIN = {
    "sample_size": 8,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 8,
}
_VQ = autoencoder(8, 12, 16, latent_channels=3, num_vq_embeddings=40, vq_embed_dim=3, sample_size=32)
_DDIM = {"clip_sample": False, "set_alpha_to_one": False, "timestep_spacing": "leading"}
PLAIN: dict[str, Family] = {
    "ldm": Family("LDMPipeline", _PLAIN, _VQ, scheduler("DDIMScheduler", **_DDIM)),
    "super-resolution": Family(
        "LDMSuperResolutionPipeline", _PLAIN | {"in_channels": 6}, _VQ, scheduler("DDIMScheduler", **_DDIM)
    ),
    "ddpm": Family(
        "DDPMPipeline", _PLAIN | {"sample_size": 16}, {}, {"_class_name": "DDPMScheduler", "clip_sample": True}
    ),
    "ddim-grey": Family(
        "DDIMPipeline",
        _PLAIN
        | {"sample_size": [12, 16], "in_channels": 1, "out_channels": 1, "flip_sin_to_cos": False, "freq_shift": 1},
        {},
        {"_class_name": "DDIMScheduler", "clip_sample": True, "prediction_type": "v_prediction"},
    ),
    "score-sde": Family(
        "ScoreSdeVePipeline",
        _PLAIN
        | {
            "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D"],
            "up_block_types": ["AttnSkipUpBlock2D", "SkipUpBlock2D"],
            "block_out_channels": [32, 32],
            "attention_head_dim": None,
            "norm_num_groups": None,
            "norm_eps": 1e-6,
            "mid_block_scale_factor": 2**0.5,
            "time_embedding_type": "fourier",
        },
        {},
        {"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0.01, "sigma_max": 50.0, "num_train_timesteps": 2000},
    ),
    "improved-ddpm": Family(
        "DDPMPipeline",
        _PLAIN | {"sample_size": 16, "out_channels": 6, "resnet_time_scale_shift": "scale_shift"},
        {},
        {
            "_class_name": "DDPMScheduler",
            "beta_schedule": "squaredcos_cap_v2",
            "variance_type": "learned_range",
            "clip_sample": True,
        },
    ),
}
