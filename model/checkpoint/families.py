"""List the families of single files: their networks' configs, text encoders, schedulers and pipelines."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ldmrt.model.networks.unet import UNetConfig
from ldmrt.model.weights.lazy import Lazy
from ldmrt.model.weights.weights import SUFFIXES as SUFFIXES
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.tokenizer.vocabulary import END

from .folder import TEXT
from .original_names import UNET, ldm_modules, unet_name

CLIP, OPEN_CLIP = "transformers", "open_clip"  # whose names a text encoder's weights have


@dataclass(frozen=True)
class Text:
    """Describes a text encoder in a file."""

    prefix: str
    names: str  # CLIP or OPEN_CLIP
    kind: str  # the class in transformers
    pad: str  # the token that fills up a prompt
    config: JsonObject


@dataclass(frozen=True)
class Family:
    """Describes models of one shape. `unet`, `vae` and the texts' configs are those of diffusers and transformers."""

    name: str
    unet: JsonObject
    vae: JsonObject
    texts: dict[str, Text]
    scheduler: JsonObject
    index: JsonObject

    def inpainting(self, scheduler: JsonObject, **unet: object) -> "Family":
        """Return the same model with the mask and the masked image's latents as further inputs of its U-Net."""
        kind = self.index["_class_name"].replace("Pipeline", "InpaintPipeline")
        return replace(
            self,
            name=f"{self.name} inpainting",
            unet={**self.unet, **unet, "in_channels": 9},
            scheduler=scheduler,
            index={**self.index, "_class_name": kind},
        )


def _text(width: int, layers: int, act: str, projection: int) -> JsonObject:
    """Return the config of a text encoder; the heads are 64 channels wide."""
    return {
        "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "hidden_act": act,
        "hidden_size": width, "intermediate_size": 4 * width, "layer_norm_eps": 1e-5, "max_position_embeddings": 77,
        "model_type": "clip_text_model", "num_attention_heads": width // 64, "num_hidden_layers": layers,
        "projection_dim": projection, "vocab_size": 49408,
    }  # fmt: skip


_DOWN, _UP = ["CrossAttnDownBlock2D", "DownBlock2D"], ["CrossAttnUpBlock2D", "UpBlock2D"]


_UNET_1 = {
    "act_fn": "silu", "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768,
    "center_input_sample": False, "down_block_types": [*_DOWN[:1] * 3, _DOWN[1]], "downsample_padding": 1,
    "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1,
    "norm_eps": 1e-5, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
    "up_block_types": [_UP[1], *_UP[:1] * 3],
}  # fmt: skip


_UNET_2 = _UNET_1 | {
    "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "sample_size": 96, "upcast_attention": True,
    "use_linear_projection": True,
}  # fmt: skip


_UNET_XL = _UNET_1 | {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048, "down_block_types": [_DOWN[1], *_DOWN[:1] * 2],
    "projection_class_embeddings_input_dim": 2816, "sample_size": 128, "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": [*_UP[:1] * 2, _UP[1]], "use_linear_projection": True,
}  # fmt: skip


_UNET_REFINER = _UNET_XL | {
    "attention_head_dim": [6, 12, 24, 24], "block_out_channels": [384, 768, 1536, 1536], "cross_attention_dim": 1280,
    "down_block_types": [_DOWN[1], *_DOWN[:1] * 2, _DOWN[1]], "projection_class_embeddings_input_dim": 2560,
    "transformer_layers_per_block": 4, "up_block_types": [_UP[1], *_UP[:1] * 2, _UP[1]],
}  # fmt: skip


VAE_1 = {
    "act_fn": "silu", "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3,
    "sample_size": 512, "scaling_factor": 0.18215, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip


_VAE_2 = VAE_1 | {"sample_size": 768}


_VAE_XL = VAE_1 | {"force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025}
TEXT_L, _TEXT_H, TEXT_G = (
    _text(768, 12, "quick_gelu", 768),
    _text(1024, 23, "gelu", 512),  # the last of 24 layers goes unused
    _text(1280, 32, "gelu", 1280),
)


_DIFFUSION = {
    "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False,
    "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
    "trained_betas": None,
}  # fmt: skip


_PNDM = {"_class_name": "PNDMScheduler", **_DIFFUSION}
_DDIM = {"_class_name": "DDIMScheduler", **_DIFFUSION}
_EULER = {
    "_class_name": "EulerDiscreteScheduler", **_DIFFUSION, "interpolation_type": "linear",
    "prediction_type": "epsilon", "sample_max_value": 1.0, "timestep_spacing": "leading", "use_karras_sigmas": False,
}  # fmt: skip


NONE = [None, None]
_SD: JsonObject = {"_class_name": "StableDiffusionPipeline", "feature_extractor": NONE, "safety_checker": NONE}
_SD |= {"requires_safety_checker": False}
_XL: JsonObject = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
_XL_REFINER: JsonObject = {
    "_class_name": "StableDiffusionXLImg2ImgPipeline", "force_zeros_for_empty_prompt": False,
    "requires_aesthetics_score": True, "text_encoder": NONE, "tokenizer": NONE,
}  # fmt: skip


_OF_1 = {"text_encoder": Text("cond_stage_model.transformer.", CLIP, TEXT[0], END, TEXT_L)}


_OF_2 = {"text_encoder": Text("cond_stage_model.model.", OPEN_CLIP, TEXT[0], "!", _TEXT_H)}


_OF_XL = {
    "text_encoder": Text("conditioner.embedders.0.transformer.", CLIP, TEXT[0], END, TEXT_L),
    "text_encoder_2": Text("conditioner.embedders.1.model.", OPEN_CLIP, TEXT[1], "!", TEXT_G),
}


_OF_REFINER = {"text_encoder_2": Text("conditioner.embedders.0.model.", OPEN_CLIP, TEXT[1], "!", TEXT_G)}
_FIRST = Family("1.x", _UNET_1, VAE_1, _OF_1, _PNDM, _SD)
_SECOND = Family("2.x", _UNET_2, _VAE_2, _OF_2, _DDIM | {"prediction_type": "v_prediction"}, _SD)
_BASE = Family("XL", _UNET_XL, _VAE_XL, _OF_XL, _EULER, _XL)
FAMILIES = (
    _FIRST,
    _FIRST.inpainting(_DDIM),
    _SECOND,
    replace(_SECOND, vae=VAE_1).inpainting(_PNDM, sample_size=64, upcast_attention=False),
    _BASE,
    _BASE.inpainting(_EULER),
    Family("XL refiner", _UNET_REFINER, _VAE_XL, _OF_REFINER, _EULER, _XL_REFINER),
)


def recognise(tensors: Mapping[str, Lazy], path: Path, replaced: Collection[str] = ()) -> Family:
    """Recognise the family of a file by the widths of its U-Net's inputs and by its text encoders.

    Args:
        tensors: The tensors of the file, by their names in it.
        path: The file, for messages.
        replaced: Parts that come from elsewhere and may be missing.

    Raises:
        LdmrtError: The file is of none of `FAMILIES`.
    """
    for family in FAMILIES:
        level = family.unet["down_block_types"].index(_DOWN[0])
        attention = f"down_blocks.{level}.attentions.0.transformer_blocks.0.attn2.to_k.weight"
        widths = {"conv_in.weight": family.unet["in_channels"], attention: family.unet["cross_attention_dim"]}
        modules = ldm_modules(UNetConfig.read(family.unet))
        inputs = {key: tensors.get(unet_name(key, modules)) for key in widths}
        fits = all(tensor and tensor.shape[1:2] == (widths[key],) for key, tensor in inputs.items())
        prefixes = [text.prefix for part, text in family.texts.items() if part not in replaced]
        if fits and all(any(key.startswith(prefix) for key in tensors) for prefix in prefixes):
            return family
    first = tensors.get(f"{UNET}input_blocks.0.0.weight")
    if first is None:
        found = f"{len(tensors)} weights, such as {min(tensors, default='none')}"
    else:
        found = f"{UNET}input_blocks.0.0.weight of shape {first.shape}"
    expected = f"Stable Diffusion {', '.join(family.name for family in FAMILIES)}, 3 or 3.5, or FLUX.1"
    raise LdmrtError("checkpoint", f"unsupported family of models in {path}", expected=expected, found=found)
