"""Derive the stage of a model from the configs that diffusers writes, where null and 0 stand for a default."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from ldmrt.runtime.errors import BundleError
from ldmrt.runtime.files.reading import JsonObject

from .graphs import STATES, TRANSFORMER
from .stages import (
    CLASSES,
    CODEC_OF,
    CONTEXT,
    DEEP,
    FILL_KINDS,
    FROM_PROMPT,
    GUIDANCE_SCALE,
    KL,
    LARGEST,
    MASK_KINDS,
    MOST,
    PIXELS,
    POOLED,
    PROMPT,
    PROMPT_MASK,
    SAMPLE,
    TIMESTEP,
    TRUE_CFG,
    VQ,
    Guide,
    Row,
    Source,
    Space,
    Stage,
)

PLAIN = "UNet2DModel"  # diffusers' U-Net that reads no prompt
TRANSFORMERS = SD3, FLUX, PIXART, SANA, Z_IMAGE = (
    "SD3Transformer2DModel", "FluxTransformer2DModel", "PixArtTransformer2DModel", "SanaTransformer2DModel",
    "ZImageTransformer2DModel",
)  # fmt: skip
T5_TOKENS = {SD3: 256, FLUX: 512}  # diffusers' `max_sequence_length` by default
SD3_GUIDANCE = 7.0  # diffusers' `guidance_scale` by default, as the numbers below
SD3_PIPELINES = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline")
KONTEXT = "FluxKontextPipeline"  # whose networks are dev's
FLUX_PIPELINES = {
    "FluxPipeline": 3.5,
    "FluxImg2ImgPipeline": 7.0,
    "FluxInpaintPipeline": 7.0,
    "FluxFillPipeline": 30.0,
    (CONTROL := "FluxControlPipeline"): 3.5,
    KONTEXT: 3.5,
}
# What their networks read beside the latents.
FLUX_READS = {KONTEXT: (CONTEXT,), CONTROL: ("control_image",), "FluxFillPipeline": FILL_KINDS}
# Pipelines that start from a second image beside the control image, for which a request has no place.
OF_TWO_IMAGES = ("FluxControlImg2ImgPipeline", "FluxControlInpaintPipeline")
FLUX_SIDE = Z_IMAGE_SIDE = 128  # latents: no config says it
PACKED = 2  # latents along one side of the tokens of FLUX.1 and Z-Image
PIXART_GUIDANCE = SANA_GUIDANCE = 4.5
PIXART_TOKENS = {"PixArtSigmaPipeline": 300, "PixArtAlphaPipeline": 120}  # `max_sequence_length` by default
SANA_PIPELINES = ("SanaPipeline",)
Z_IMAGE_PIPELINES = ("ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline")
# What diffusers names the widths of an autoencoder's levels, by its class.
WIDTHS = {"AutoencoderDC": "encoder_block_out_channels"}


def stage_of_configs(unet: JsonObject, vae: JsonObject | None, index: JsonObject) -> Stage:
    """Derive the stage of a model from the configs that diffusers writes.

    Args:
        unet: The config.json of the U-Net, or of the transformer.
        vae: vae_decoder/config.json; None for a model without an autoencoder, which works in pixels.
        index: model_index.json, which states three properties of pipelines; it may be empty.

    Raises:
        BundleError: A value is missing or invalid.
    """
    name = str(unet.get("_class_name"))
    if "Transformer" in name and name not in TRANSFORMERS:
        problem = "unsupported class in transformer/config.json"
        raise BundleError("bundle", problem, expected=" or ".join(TRANSFORMERS), found=f"{name:.100}")
    if name in TRANSFORMERS:
        build, pipelines = PIPELINES[name]
        kind = str(index.get("_class_name", next(iter(pipelines)))).removeprefix("ORT")
        if kind not in pipelines:
            problem, expected = "unsupported pipeline in model_index.json", " or ".join(pipelines)
            hint = f"{CONTROL} there, which draws from the control image" if kind in OF_TWO_IMAGES else None
            raise BundleError("bundle", problem, expected=expected, found=f"{kind:.100}", hint=hint)
        return build(unet, vae or {}, kind)
    space = _space_of_config(vae) if vae is not None else Space(channels_of(unet), 1, 1.0, PIXELS)
    sides = _sides_of(unet.get("sample_size"))
    stage = Stage(
        space,
        own=(sides[0] * space.factor, sides[1] * space.factor),
        reads=_reads_of_configs(unet, space, index),
        shortens="LatentConsistencyModel" in str(index.get("_class_name")),
    )
    guided = "timestep_cond" not in stage.reads and stage.prompt
    return stage if guided else replace(stage, guide=Guide((Row("positive"),), ()))


def channels_of(unet: JsonObject) -> int:
    """Return the channels that a U-Net without anything beside its state takes."""
    return _whole("unet/config.json", "in_channels", unet.get("in_channels"), 3)


def _space_of_config(vae: JsonObject) -> Space:
    """Return the latents of an autoencoder."""
    file, kind = "vae_decoder/config.json", str(vae.get("_class_name"))
    widths = vae.get(key := WIDTHS.get(kind, "block_out_channels"))
    if not isinstance(widths, list) or not 0 < len(widths) <= MOST:
        found = None if widths is None else f"{widths!r:.100}"
        raise BundleError("bundle", f"{file} has no {key}", expected="a list of widths", found=found)
    codec = CODEC_OF.get(kind, KL)
    name = "vq_embed_dim" if codec == VQ and vae.get("vq_embed_dim") else "latent_channels"
    channels = _whole(file, name, vae.get(name), {VQ: 3, DEEP: 32}.get(codec, 4))
    scale = _positive(file, "scaling_factor", vae.get("scaling_factor"), 1.0 if codec == DEEP else 0.18215)
    shift = _real(file, "shift_factor", vae.get("shift_factor"))
    return Space(channels, 2 ** (len(widths) - 1), scale, codec, shift_factor=shift)


def _reads_of_configs(unet: JsonObject, space: Space, index: JsonObject) -> dict[str, tuple[Source, ...]]:
    """Return the sources of a U-Net's inputs: of one with attention to a context that is a prompt's."""
    zeros = _truth("force_zeros_for_empty_prompt", index.get("force_zeros_for_empty_prompt"))
    scored = _truth("requires_aesthetics_score", index.get("requires_aesthetics_score"))
    xl = bool(unet.get("addition_embed_type"))
    masked = space.codec != PIXELS and unet.get("in_channels") == 2 * space.channels + 1
    reads: dict[str, tuple[Source, ...]] = {
        SAMPLE: (Source("state"), *((Source(kind) for kind in MASK_KINDS) if masked else ())),
        TIMESTEP: (Source("timestep"),),
    }
    if unet.get("_class_name") != PLAIN:
        settings = ({"penultimate": True} if xl else {}) | ({"zeros": True} if zeros else {})
        reads[PROMPT] = (Source("prompt", settings),)
    if xl:
        reads[POOLED] = (Source("pooled_prompt"),)
        reads["time_ids"] = (Source("sizes", {"scored": True} if scored else {}),)
    if unet.get("time_cond_proj_dim"):
        reads["timestep_cond"] = (Source("guidance_scale"),)
    if unet.get("num_class_embeds"):
        count = _whole("unet/config.json", "num_class_embeds", unet["num_class_embeds"], 1)
        reads[CLASSES] = (Source("class", {"count": count}),)
    return reads


def _in_patches(
    transformer: JsonObject, vae: JsonObject, patch: int = 2, side: int = 128
) -> tuple[Space, tuple[int, int]]:
    """Return the space of a transformer that reads latents in patches, and the sides of its own images in pixels.

    `patch` and `side` are what its class has by default.
    """
    file = "transformer/config.json"
    space = replace(_space_of_config(vae), patch=_whole(file, "patch_size", transformer.get("patch_size"), patch))
    side = _whole(file, "sample_size", transformer.get("sample_size"), side) * space.factor
    return space, (side, side)


def _stable_diffusion_3(transformer: JsonObject, vae: JsonObject, kind: str) -> Stage:
    """Return the stage of Stable Diffusion 3 (Esser et al. 2024, arXiv:2403.03206)."""
    file = "transformer/config.json"
    space, own = _in_patches(transformer, vae)
    positions = _whole(file, "pos_embed_max_size", transformer.get("pos_embed_max_size"), 96)
    width = _whole(file, "joint_attention_dim", transformer.get("joint_attention_dim"), 4096)
    return Stage(
        space,
        own=own,
        reads={
            STATES[TRANSFORMER]: (Source("state"),),
            TIMESTEP: (Source("timestep"),),
            PROMPT: (Source("joint_prompt", {"width": width, "tokens": T5_TOKENS[SD3]}),),
            "pooled_projections": (Source("joint_pooled_prompt"),),
        },
        network=TRANSFORMER,
        largest=positions * space.unit,
        guidance_scale=SD3_GUIDANCE,
    )


def _flux(transformer: JsonObject, vae: JsonObject, kind: str) -> Stage:
    """Return the stage of FLUX.1: of dev and schnell, Fill, Canny and Depth, or Kontext, by their pipelines."""
    file = "transformer/config.json"
    space, beside = replace(_space_of_config(vae), patch=PACKED), tuple(map(Source, FLUX_READS.get(kind, ())))
    guided = _truth("guidance_embeds", transformer.get("guidance_embeds"), file)
    stage = Stage(
        space,
        own=(FLUX_SIDE * space.factor,) * 2,
        reads={
            STATES[TRANSFORMER]: (Source("state"), *beside),
            TIMESTEP: (Source("timestep"),),
            PROMPT: (Source("t5_prompt", {"tokens": T5_TOKENS[FLUX]}),),
            "pooled_projections": (Source("clip_pooled_prompt"),),
            **({"guidance": (Source("guidance"),)} if guided else {}),
        },
        guide=Guide(scales=(TRUE_CFG,)) if not beside or kind == KONTEXT else Guide((Row("positive"),), ()),
        network=TRANSFORMER,
        trailing=True,
        guidance_scale=FLUX_PIPELINES[kind] if guided else GUIDANCE_SCALE,
    )
    channels = _whole(file, "in_channels", transformer.get("in_channels"), 64)
    # Kontext's image is other tokens, and no channels of these.
    expected = PACKED**2 * (space.channels if kind == KONTEXT else stage.input_channels)
    if channels != expected:
        problem = f"unsupported in_channels in {file}"
        raise BundleError("bundle", problem, expected=f"{expected}, as {kind} reads", found=channels)
    return stage


def _pixart(transformer: JsonObject, vae: JsonObject, kind: str) -> Stage:
    """Return the stage of PixArt-Alpha and PixArt-Sigma (Chen et al. 2024, arXiv:2403.04692), by their pipelines."""
    space, own = _in_patches(transformer, vae)
    return Stage(
        space,
        own=own,
        reads={
            STATES[TRANSFORMER]: (Source("state"),),
            TIMESTEP: (Source("timestep"),),
            PROMPT: (Source("masked_prompt", {"tokens": PIXART_TOKENS[kind]}),),
            PROMPT_MASK: (Source("prompt_mask"),),
        },
        network=TRANSFORMER,
        guidance_scale=PIXART_GUIDANCE,
    )


def _sana(transformer: JsonObject, vae: JsonObject, kind: str) -> Stage:
    """Return the stage of Sana (Xie et al. 2024, arXiv:2410.10629), without its prompt: see `model/families`."""
    space, own = _in_patches(transformer, vae, patch=1, side=32)
    return Stage(
        space,
        own=own,
        reads={STATES[TRANSFORMER]: (Source("state"),), TIMESTEP: (Source("timestep"),)},
        network=TRANSFORMER,
        guidance_scale=SANA_GUIDANCE,
    )


def _z_image(transformer: JsonObject, vae: JsonObject, kind: str) -> Stage:
    """Return the stage of Z-Image (Z-Image Team 2025, arXiv:2511.22699), without its prompt: see `model/families`."""
    space, lengths = replace(_space_of_config(vae), patch=PACKED), transformer.get("axes_lens") or [1024, 512, 512]
    axes = lengths if isinstance(lengths, list) and len(lengths) == 3 else [lengths] * 3  # which is no number then
    sides = [_whole("transformer/config.json", "axes_lens", axis, 512) for axis in axes[1:]]
    return Stage(
        space,
        own=(Z_IMAGE_SIDE * space.factor,) * 2,
        reads={STATES[TRANSFORMER]: (Source("state"),), TIMESTEP: (Source("timestep"),)},
        guide=Guide(scales=(FROM_PROMPT,)),
        network=TRANSFORMER,
        largest=min(sides) * space.unit,
        trailing=True,
    )


# How the stage of a transformer is derived, and the pipelines in diffusers that it may be of, the usual one first.
PIPELINES: Mapping[str, tuple[Callable[[JsonObject, JsonObject, str], Stage], Collection[str]]] = {
    SD3: (_stable_diffusion_3, SD3_PIPELINES),
    FLUX: (_flux, FLUX_PIPELINES),
    PIXART: (_pixart, PIXART_TOKENS),
    SANA: (_sana, SANA_PIPELINES),
    Z_IMAGE: (_z_image, Z_IMAGE_PIPELINES),
}


def _sides_of(value: object) -> tuple[int, int]:
    """Read height and width in latents: one number for both, or a pair."""
    pair = value if isinstance(value, list) and len(value) == 2 else [value, value]
    height, width = (_whole("unet/config.json", "sample_size", side, 64) for side in pair)
    return height, width


def _whole(file: str, key: str, value: object, default: int) -> int:
    """Read a count; null and 0 stand for the default, as in old configs of diffusers."""
    number = default if value is None or value == 0 else value
    if type(number) is float and number.is_integer():
        number = int(number)
    if type(number) is not int or not 0 < number <= LARGEST:
        raise BundleError("bundle", f"invalid {key} in {file}", expected=f"1 to {LARGEST}", found=f"{value!r:.100}")
    return number


def _positive(file: str, key: str, value: object, default: float) -> float:
    """Read a number above 0; null and 0 stand for the default."""
    return _number(file, key, default if value is None or value == 0 else value, "a number above 0", 0.0)


def _real(file: str, key: str, value: object) -> float:
    """Read a number of any sign; null is 0."""
    return _number(file, key, 0.0 if value is None else value, "a number", -1e9)


def _number(file: str, key: str, value: object, expected: str, above: float) -> float:
    """Return a number above another one, and below 1e9."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not above < value < 1e9:
        raise BundleError("bundle", f"invalid {key} in {file}", expected=expected, found=f"{value!r:.100}")
    return float(value)


def _truth(key: str, value: object, file: str = "model_index.json") -> bool:
    """Read true or false; null is false."""
    if value not in (None, True, False):
        problem = f"invalid {key} in {file}"
        raise BundleError("bundle", problem, expected="true or false", found=f"{value!r:.100}")
    return bool(value)
