"""Refuse the parts of a model with a transformer that do not fit together, before their weights are read."""

from ldmrt.model.library.z_image import MULTIPLE
from ldmrt.runtime.bundle.stage_of_configs import FLUX, PACKED, PIXART, SANA, Z_IMAGE
from ldmrt.runtime.bundle.stages import CONTEXT
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject

from .checkpoint import Checkpoint, class_of, config_of
from .folder import GEMMA, QWEN, T5, TEXT

CLIP = ("text_encoder", "text_encoder_2")
# Families of one text encoder: their names, its class, its name, and the key of its config that says its width.
ENCODER_OF = {PIXART: ("PixArt", T5, "T5", "d_model"), SANA: ("Sana", GEMMA, "Gemma", "hidden_size")}


def check_transformer(checkpoint: Checkpoint) -> None:
    """Refuse a transformer whose latents or text encoders are not as wide as it reads them.

    Raises:
        LdmrtError: Names the part and the value of its config.
    """
    config, stage = config_of(checkpoint.denoiser), checkpoint.stage
    flux = class_of(checkpoint.denoiser) == FLUX
    packed = stage.space.patch**2 if flux else 1  # latents in a channel that the config counts
    inputs = stage.space.channels if stage.source(CONTEXT) else stage.input_channels  # an image's tokens are its own
    if config["in_channels"] != packed * inputs:
        problem = "in_channels of transformer/config.json is not latent_channels of vae/config.json"
        raise LdmrtError("transformer", problem, expected=packed * inputs, found=config["in_channels"])
    if class_of(checkpoint.denoiser) in (PIXART, SANA):
        _check_one_encoder(checkpoint, config, *ENCODER_OF[class_of(checkpoint.denoiser)])
        return
    if class_of(checkpoint.denoiser) == Z_IMAGE:
        _check_z_image(checkpoint, config)
        return
    own = config["in_channels"] if config["out_channels"] is None else config["out_channels"]
    if own != (channels := packed * stage.space.channels):
        problem = "out_channels of transformer/config.json is not latent_channels of vae/config.json"
        raise LdmrtError("transformer", problem, expected=channels, found=own)
    if flux:
        _check_flux(checkpoint, config)
    else:
        _check_stable_diffusion_3(checkpoint, config)
    for encoder in checkpoint.text_encoders.values():
        if class_of(encoder) == T5 and (wide := int(encoder.config.hidden_size)) != config["joint_attention_dim"]:
            problem = "joint_attention_dim of transformer/config.json is not d_model of the T5 encoder"
            raise LdmrtError("transformer", problem, expected=wide, found=config["joint_attention_dim"])


def latent_channels(checkpoint: Checkpoint) -> int:
    """Return how many channels the latents have that a transformer predicts."""
    config, kind = config_of(checkpoint.denoiser), class_of(checkpoint.denoiser)
    # PixArt's are those of a variance too, and Z-Image states none.
    predicted = None if kind in (PIXART, SANA, Z_IMAGE) else config["out_channels"]
    channels = int(predicted or config["in_channels"])
    return channels // PACKED**2 if kind == FLUX else channels


def _check_stable_diffusion_3(checkpoint: Checkpoint, config: JsonObject) -> None:
    """Refuse other text encoders than two of CLIP, and widths that are not theirs."""
    encoders = checkpoint.text_encoders
    for name in CLIP:
        if name not in encoders or class_of(encoders[name]) != TEXT[1]:
            found = class_of(encoders[name]) if name in encoders else "none"
            raise LdmrtError(name, "Stable Diffusion 3 has two CLIP encoders", expected=TEXT[1], found=found)
    if odd := [layer for layer in checkpoint.skip_layers if not 0 <= layer < config["num_layers"]]:
        expected = f"0 to {config['num_layers'] - 1}"
        raise LdmrtError("transformer", "no such layer to skip", expected=expected, found=odd[0])
    pooled = sum(int(encoders[name].config.projection_dim) for name in CLIP)
    if pooled != config["pooled_projection_dim"]:
        problem = "pooled_projection_dim of transformer/config.json is not projection_dim of both CLIP encoders"
        raise LdmrtError("transformer", problem, expected=pooled, found=config["pooled_projection_dim"])
    width = sum(int(encoders[name].config.hidden_size) for name in CLIP)
    if width > config["joint_attention_dim"]:
        problem = "joint_attention_dim of transformer/config.json is below hidden_size of both CLIP encoders"
        found = config["joint_attention_dim"]
        raise LdmrtError("transformer", problem, expected=f"at least {width}", found=found)


def _check_flux(checkpoint: Checkpoint, config: JsonObject) -> None:
    """Refuse other text encoders than CLIP's and T5's, and a pooled width that is not CLIP's."""
    encoders = checkpoint.text_encoders
    for name, kind in zip(CLIP, (TEXT[0], T5), strict=True):
        if name not in encoders or class_of(encoders[name]) != kind:
            found = class_of(encoders[name]) if name in encoders else "none"
            raise LdmrtError(name, "FLUX.1 has a CLIP encoder and T5", expected=kind, found=found)
    if (width := int(encoders["text_encoder"].config.hidden_size)) != config["pooled_projection_dim"]:
        problem = "pooled_projection_dim of transformer/config.json is not hidden_size of the CLIP encoder"
        raise LdmrtError("transformer", problem, expected=width, found=config["pooled_projection_dim"])


def _check_one_encoder(checkpoint: Checkpoint, config: JsonObject, family: str, kind: str, own: str, key: str) -> None:
    """Refuse other text encoders than the one, channels that are no prediction, and a variance that is ignored."""
    channels = checkpoint.stage.space.channels
    wide = _width_of_one_encoder(checkpoint, family, kind, own)
    out = config["in_channels"] if config["out_channels"] is None else config["out_channels"]
    if out not in (channels, 2 * channels):
        problem = "out_channels of transformer/config.json is not latent_channels of vae/config.json"
        raise LdmrtError("transformer", problem, expected=f"{channels}, or {2 * channels} with a variance", found=out)
    name = "cross_attention_dim" if config["caption_channels"] is None else "caption_channels"
    if wide != config[name]:
        problem = f"{name} of transformer/config.json is not {key} of {own}"
        raise LdmrtError("transformer", problem, expected=wide, found=config[name])
    if str(variance := checkpoint.scheduler.get("variance_type")).startswith("learned"):
        problem, hint = f"unsupported variance_type of {family}", "--set variance_type=fixed_small"
        expected = "a variance_type that is not learned"
        raise LdmrtError("scheduler", problem, expected=expected, found=variance, hint=hint)


def _check_z_image(checkpoint: Checkpoint, config: JsonObject) -> None:
    """Refuse other text encoders than Qwen3, prompts of another width than its, and more tokens than positions."""
    wide = _width_of_one_encoder(checkpoint, "Z-Image", QWEN, "Qwen3")
    if wide != config["cap_feat_dim"]:
        problem = "cap_feat_dim of transformer/config.json is not hidden_size of Qwen3"
        raise LdmrtError("transformer", problem, expected=wide, found=config["cap_feat_dim"])
    prompt = checkpoint.stage.prompt
    assert prompt is not None
    tokens = -(-int(prompt.setting("tokens")) // MULTIPLE) * MULTIPLE + 1  # the image's are behind those of the prompt
    if tokens >= config["axes_lens"][0]:
        problem, hint = "axes_lens of transformer/config.json has too few positions", "a lower --max-sequence-length"
        raise LdmrtError("transformer", problem, expected=f"above {tokens}", found=config["axes_lens"][0], hint=hint)


def _width_of_one_encoder(checkpoint: Checkpoint, family: str, kind: str, own: str) -> int:
    """Return the width of a model's one text encoder, and refuse another one, or others beside it."""
    kinds = {name: class_of(encoder) for name, encoder in checkpoint.text_encoders.items()}
    if kinds != {CLIP[0]: kind}:
        found = ", ".join(f"{name} of {kind}" for name, kind in kinds.items()) or "none"
        problem, expected = f"{family} has one text encoder, {own}", f"{CLIP[0]} of {kind}"
        raise LdmrtError(CLIP[0], problem, expected=expected, found=found)
    return int(checkpoint.text_encoders[CLIP[0]].config.hidden_size)
