"""The families of Stable Diffusion checkpoints as diffusers' pipelines, small and with random weights.

A family is one row of `FAMILIES`. Torch and diffusers are imported only when something is built.
"""

from dataclasses import dataclass, field
from typing import Any

LENGTH = 16  # tokens
START, END = "<|startoftext|>", "<|endoftext|>"
CAPTIONS = ["a red apple, noto style, blue background!", "a penguin on a yellow background!", "two pears"] * 3

Config = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """What a checkpoint of this family holds. Text configs lack what the vocabulary decides."""

    pipeline: str  # diffusers' class
    unet: Config
    vae: Config
    scheduler: Config
    text_encoder: Config | None = None
    text_encoder_2: Config | None = None
    pad: str = END  # the padding of the first tokenizer; the second's is "!"
    extra: Config = field(default_factory=dict)  # of model_index.json
    old: bool = False  # as saved in 2022: fewer fields, other names of the autoencoder's attention, text_model.

    @property
    def factor(self) -> int:
        """Pixels a latent, along one side."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1)) if self.vae else 1

    @property
    def size(self) -> int:
        """Pixels along one side of a picture."""
        return int(self.unet["sample_size"]) * self.factor


def _blocks(kinds: str) -> Config:
    """The blocks of a U-Net, one letter a level: A with attention, P plain."""
    down = {"A": "CrossAttnDownBlock2D", "P": "DownBlock2D"}
    up = {"A": "CrossAttnUpBlock2D", "P": "UpBlock2D"}
    return {"down_block_types": [down[k] for k in kinds], "up_block_types": [up[k] for k in reversed(kinds)]}


def _vae(*widths: int, **change: Any) -> Config:
    levels = len(widths)
    return {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": list(widths),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 16,
        "scaling_factor": 0.18215,
        **change,
    }


def _text(width: int, act: str, **change: Any) -> Config:
    """As the hub's configs: their eos_token_id of 2 is no token's, and asks for the highest id of each text."""
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "projection_dim": width,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": LENGTH,
        "hidden_act": act,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        **change,
    }


def _scheduler(name: str, **change: Any) -> Config:
    betas = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return {"_class_name": name, **betas, **change}


_SMALL = {"sample_size": 8, "layers_per_block": 1, "norm_num_groups": 4}
_UNET1 = _SMALL | _blocks("AP") | {"block_out_channels": [16, 32], "cross_attention_dim": 24, "attention_head_dim": 2}
_UNET2 = _UNET1 | {"cross_attention_dim": 32, "attention_head_dim": [2, 4], "use_linear_projection": True}
_UNETXL = (
    _SMALL
    | _blocks("PAA")
    | {
        "block_out_channels": [16, 16, 32],
        "cross_attention_dim": 24 + 32,  # both text encoders
        "attention_head_dim": [1, 2, 4],
        "transformer_layers_per_block": [1, 1, 2],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 20,
    }
)
_REFINER = (
    _UNETXL
    | _blocks("PAAP")
    | {
        "block_out_channels": [16, 16, 32, 32],
        "cross_attention_dim": 32,
        "attention_head_dim": [1, 2, 4, 4],
        "transformer_layers_per_block": 2,
        "projection_class_embeddings_input_dim": 5 * 8 + 20,
    }
)
_ODD = _blocks("APA") | {
    "sample_size": 6,
    "in_channels": 6,
    "out_channels": 6,
    "layers_per_block": 1,
    "norm_num_groups": 5,
    "block_out_channels": [15, 30, 45],
    "cross_attention_dim": 18,
    "attention_head_dim": [4, 3, 7],  # which do not divide their widths
    "transformer_layers_per_block": [1, 1, 2],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-4,
}

_SD1 = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
_PNDM = _scheduler("PNDMScheduler", skip_prk_steps=True, **_SD1)
_EULER = _scheduler("EulerDiscreteScheduler", steps_offset=1, timestep_spacing="leading")
_TEXT1, _TEXT2 = _text(24, "quick_gelu"), _text(32, "gelu")
_TEXTG = _text(32, "gelu", projection_dim=20)  # SDXL's second
_XL_VAE = _vae(8, 16, scaling_factor=0.13025)

FAMILIES: dict[str, Family] = {
    "sd15": Family("StableDiffusionPipeline", _UNET1, _vae(8, 16), _PNDM, _TEXT1),
    "sd15-inpainting": Family(
        "StableDiffusionInpaintPipeline", _UNET1 | {"in_channels": 9}, _vae(8, 16), _PNDM, _TEXT1
    ),
    "sd14-2022": Family(
        "StableDiffusionPipeline",
        _UNET1,
        _vae(8, 16),
        _scheduler("PNDMScheduler", skip_prk_steps=True),
        _TEXT1,
        old=True,
    ),
    "sd2-base": Family("StableDiffusionPipeline", _UNET2, _vae(8, 16), _PNDM, _TEXT2, pad="!"),
    "sd2-v": Family(
        "StableDiffusionPipeline",
        _UNET2 | {"upcast_attention": True},
        _vae(8, 16),
        _scheduler("DDIMScheduler", prediction_type="v_prediction", **_SD1),
        _TEXT2,
        pad="!",
    ),
    "sd-turbo": Family(
        "StableDiffusionPipeline",
        _UNET2,
        _vae(8, 16),
        _scheduler("EulerDiscreteScheduler", steps_offset=1, timestep_spacing="trailing"),
        _TEXT2,
        pad="!",
    ),
    "lcm": Family(
        "LatentConsistencyModelPipeline",
        _UNET1 | {"time_cond_proj_dim": 12},
        _vae(8, 16),
        _scheduler("LCMScheduler", original_inference_steps=50, **_SD1),
        _TEXT1,
    ),
    "sdxl": Family("StableDiffusionXLPipeline", _UNETXL, _XL_VAE, _EULER, _TEXT1, _TEXTG),
    "sdxl-refiner": Family(
        "StableDiffusionXLImg2ImgPipeline",
        _REFINER,
        _XL_VAE,
        _EULER,
        None,
        _TEXTG,
        extra={"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False},
    ),
    "odd": Family(
        "StableDiffusionPipeline",
        _ODD,
        _vae(
            6,
            9,
            12,
            norm_num_groups=3,
            latent_channels=6,
            sample_size=24,
            scaling_factor=0.7,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
        ),
        _scheduler("DDIMScheduler", **_SD1),
        _text(18, "quick_gelu", eos_token_id=None),  # the token's own, as newer configs have it
    ),
}

# Families whose U-Net is told more than a prompt.
CONDITIONED: dict[str, Family] = {
    "pix2pix": Family(
        "StableDiffusionInstructPix2PixPipeline",
        _UNET1 | {"in_channels": 8},
        _vae(8, 16),
        _scheduler("EulerAncestralDiscreteScheduler", **_SD1),
        _TEXT1,
    ),
    "upscaler": Family(
        "StableDiffusionUpscalePipeline",
        _UNET2
        | {"in_channels": 7, "num_class_embeds": 1000, "only_cross_attention": [True, False], "upcast_attention": True},
        _vae(8, 12, 16, scaling_factor=0.08333),
        _scheduler("DDIMScheduler", prediction_type="v_prediction", **_SD1),
        _TEXT2,
        pad="!",
        extra={
            "low_res_scheduler": {
                "_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02,
                "beta_schedule": "scaled_linear",
            },
            "max_noise_level": 350,
        },
    ),
    "ldm3d": Family("StableDiffusionLDM3DPipeline", _UNET1, _vae(8, 16, in_channels=6, out_channels=6), _PNDM, _TEXT1),
    "ldm3d-4c": Family(
        "StableDiffusionLDM3DPipeline", _UNET1, _vae(8, 16, in_channels=4, out_channels=4), _PNDM, _TEXT1
    ),
    "classes": Family("StableDiffusionPipeline", _UNET1 | {"num_class_embeds": 5}, _vae(8, 16), _PNDM, _TEXT1),
}  # fmt: skip

# The hub's own configs, of which only the shapes are made.
_FULL_BLOCKS = {"layers_per_block": 2, "norm_num_groups": 32}
_FULL_XL = (
    _FULL_BLOCKS
    | _blocks("PAA")
    | {
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 1280 + 6 * 256,
    }
)
FULL_UNETS: dict[str, Config] = {
    "sd15": {"sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768},
    "sd21": {
        "sample_size": 96,
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "sdxl": _FULL_XL,
    "sdxl-refiner": _FULL_XL
    | _blocks("PAAP")
    | {
        "block_out_channels": [384, 768, 1536, 1536],
        "attention_head_dim": [6, 12, 24, 24],
        "cross_attention_dim": 1280,
        "transformer_layers_per_block": 4,
        "projection_class_embeddings_input_dim": 1280 + 5 * 256,
    },
}
FULL_VAE = _vae(128, 256, 512, 512, layers_per_block=2, norm_num_groups=32, sample_size=512)

# What diffusers wrote in 2022.
_OLD_FIELDS = {
    "unet": set(
        "_class_name sample_size act_fn attention_head_dim block_out_channels center_input_sample cross_attention_dim "
        "down_block_types downsample_padding flip_sin_to_cos freq_shift in_channels layers_per_block "
        "mid_block_scale_factor norm_eps norm_num_groups out_channels up_block_types".split()
    ),
    "vae": set(
        "_class_name act_fn block_out_channels down_block_types in_channels latent_channels layers_per_block "
        "norm_num_groups out_channels sample_size up_block_types".split()
    ),
}
_OLD_NAMES = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
