"""Tell a transformer's config by the shapes of its tensors, and list what belongs to it: texts, autoencoder, scheduler.

The rows are the configs that Stability AI and Black Forest Labs publish in diffusers' layout.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from ldmrt.model.library.flux import FluxConfig
from ldmrt.model.library.t5 import T5
from ldmrt.runtime.bundle.stage_of_configs import FLUX, SD3
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.tokenizer.vocabulary import END

from ..families import CLIP, NONE, TEXT_G, TEXT_L, VAE_1, Text
from ..folder import TEXT

HEAD = 64  # channels of a head of Stable Diffusion 3, where no norm of q has that size
AXES = [16, 56, 56]  # channels of a head of FLUX.1 that turn with a token's position, by axis
GUIDANCE = "time_text_embed.guidance_embedder.linear_1.weight"
NORM = "transformer_blocks.0.attn.norm_q.weight"
SECOND = "transformer_blocks.{}.attn2.to_q.weight"  # of a second attention, to the image alone
SIDE = 128  # latents along a side of the images that Stable Diffusion 3 was trained on
Shape = Callable[[str, int], tuple[int, ...]]  # of the weight of this name, which has so many axes

_T5_XXL: JsonObject = {
    "d_ff": 10240, "d_kv": 64, "d_model": 4096, "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0, "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-6, "model_type": "t5", "num_decoder_layers": 24, "num_heads": 64, "num_layers": 24,
    "pad_token_id": 0, "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False, "use_cache": True, "vocab_size": 32128,
}  # fmt: skip
_VAE = VAE_1 | {
    "force_upcast": True, "latent_channels": 16, "sample_size": 1024, "use_post_quant_conv": False,
    "use_quant_conv": False,
}  # fmt: skip
_FLOW: JsonObject = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
_DYNAMIC = _FLOW | {
    "base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15, "shift": 3.0,
    "use_dynamic_shifting": True,
}  # fmt: skip
BY_CHANNELS = ("FluxPipeline", "FluxControlPipeline", "FluxFillPipeline")  # whose networks read other channels
_L, _G, _XXL = (f"text_encoders.{name}.transformer." for name in ("clip_l", "clip_g", "t5xxl"))


@dataclass(frozen=True)
class TransformerFamily:
    """Describes what belongs to a transformer: the autoencoder's config and the text encoders'."""

    name: str
    vae: JsonObject
    texts: dict[str, Text]
    optional: tuple[str, ...] = ()  # text encoders that may be left out


FAMILIES = {
    SD3: TransformerFamily(
        "Stable Diffusion 3",
        _VAE | {"scaling_factor": 1.5305, "shift_factor": 0.0609},
        {
            "text_encoder": Text(_L, CLIP, TEXT[1], END, TEXT_L),
            "text_encoder_2": Text(_G, CLIP, TEXT[1], "!", TEXT_G),
            "text_encoder_3": Text(_XXL, CLIP, T5, "<pad>", _T5_XXL),
        },
        ("text_encoder_3",),
    ),
    FLUX: TransformerFamily(
        "FLUX.1",
        _VAE | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
        {
            "text_encoder": Text(_L, CLIP, TEXT[0], END, TEXT_L),
            "text_encoder_2": Text(_XXL, CLIP, T5, "<pad>", _T5_XXL),
        },
    ),
}


def scheduler_of(kind: str, config: JsonObject) -> JsonObject:
    """Return the scheduler's config; FLUX.1 schnell, whose timesteps are not shifted, is the one without guidance."""
    if kind == SD3:
        return _FLOW | {"shift": 3.0}
    return dict(_DYNAMIC) if config["guidance_embeds"] else _FLOW | {"shift": 1.0}


def index_of(kind: str, config: JsonObject, left_out: Collection[str] = ()) -> JsonObject:
    """Return model_index.json without the parts, but with those that are left out."""
    name = "StableDiffusion3Pipeline" if kind == SD3 else flux_pipeline(config)
    return {"_class_name": name, "feature_extractor": NONE, "image_encoder": NONE, **dict.fromkeys(left_out, NONE)}


def flux_pipeline(config: JsonObject) -> str:
    """Return the pipeline's class of a FLUX.1 by the channels that it reads beside the latents: none, as many, or more.

    Raises:
        LdmrtError: The config is invalid.
    """
    read = FluxConfig.read(config)
    times = read.in_channels / (read.out_channels or read.in_channels)
    return BY_CHANNELS[{1.0: 0, 2.0: 1}.get(times, 2)]


def depth_of(names: Collection[str], blocks: str) -> int:
    """Count the blocks of a kind, such as joint_blocks, among names without a prefix."""
    found = (re.match(rf"{blocks}\.(\d+)\.", name) for name in names)
    return len({match[1] for match in found if match})


def telling(kind: str, depth: int) -> list[str]:
    """Return the weights that not all models of a class have, by which one of `depth` blocks is told from another."""
    return [NORM, GUIDANCE] if kind == FLUX else [NORM, *(SECOND.format(n) for n in range(depth))]


def _stated(own: JsonObject | None, key: str, usual: int) -> int:
    """Return a number of another transformer's config, or the usual one."""
    value = (own or {}).get(key)
    return value if type(value) is int else usual


def config_of_shapes(
    kind: str, blocks: Mapping[str, int], held: Collection[str], shape: Shape, own: JsonObject | None
) -> JsonObject:
    """Return the config of a transformer.

    Args:
        kind: The class in diffusers.
        blocks: How many transformer_blocks and single_transformer_blocks there are.
        held: The weights among those of `telling` that are there.
        shape: Returns the shape of a weight by its name in diffusers' class.
        own: The config of the transformer that this one takes the place of, for what no shape tells.

    Raises:
        LdmrtError: A weight is missing, or has another number of axes.
    """
    width, joint = shape("context_embedder.weight", 2)
    pooled = shape("time_text_embed.text_embedder.linear_1.weight", 2)[1]
    head = shape(NORM, 1)[0] if NORM in held else _stated(own, "attention_head_dim", HEAD)
    config = {
        "attention_head_dim": head, "joint_attention_dim": joint, "num_attention_heads": width // max(head, 1),
        "num_layers": blocks["transformer_blocks"], "pooled_projection_dim": pooled,
    }  # fmt: skip
    rows = shape("proj_out.weight", 2)[0]
    if kind == FLUX:
        inputs = shape("x_embedder.weight", 2)[1]
        return config | {
            "axes_dims_rope": (own or {}).get("axes_dims_rope", AXES),
            "guidance_embeds": GUIDANCE in held, "in_channels": inputs,
            "num_single_layers": blocks["single_transformer_blocks"],
            "out_channels": None if rows == inputs else rows, "patch_size": 1,
        }  # fmt: skip
    _, inputs, patch, _ = shape("pos_embed.proj.weight", 4)
    side = math.isqrt(shape("pos_embed.pos_embed", 3)[1])
    second = [n for n in range(blocks["transformer_blocks"]) if SECOND.format(n) in held]
    return config | {
        "caption_projection_dim": width, "dual_attention_layers": second, "in_channels": inputs,
        "out_channels": rows // max(patch, 1) ** 2, "patch_size": patch, "pos_embed_max_size": side,
        "qk_norm": "rms_norm" if NORM in held else None,
        "sample_size": min(_stated(own, "sample_size", SIDE), side * patch),
    }  # fmt: skip
