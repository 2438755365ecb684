"""Refuse the parts of a Stable Diffusion 3 that do not fit together, before their weights are read."""

from ldmrt.runtime.errors import LdmrtError

from .checkpoint import Checkpoint, class_of, config_of
from .folder import T5, TEXT

CLIP = ("text_encoder", "text_encoder_2")


def check_transformer(checkpoint: Checkpoint) -> None:
    """Refuse a transformer whose latents or text encoders are not as wide as it reads them.

    Raises:
        LdmrtError: Names the part and the value of its config.
    """
    config, space, encoders = config_of(checkpoint.denoiser), checkpoint.stage.space, checkpoint.text_encoders
    if config["in_channels"] != space.channels:
        problem = "in_channels of transformer/config.json is not latent_channels of vae/config.json"
        raise LdmrtError("transformer", problem, expected=space.channels, found=config["in_channels"])
    if config["out_channels"] not in (None, space.channels):
        problem = "out_channels of transformer/config.json is not latent_channels of vae/config.json"
        raise LdmrtError("transformer", problem, expected=space.channels, found=config["out_channels"])
    for name in CLIP:
        if name not in encoders or class_of(encoders[name]) != TEXT[1]:
            found = class_of(encoders[name]) if name in encoders else "none"
            raise LdmrtError(name, "Stable Diffusion 3 has two CLIP encoders", expected=TEXT[1], found=found)
    pooled = sum(int(encoders[name].config.projection_dim) for name in CLIP)
    if pooled != config["pooled_projection_dim"]:
        problem = "pooled_projection_dim of transformer/config.json is not projection_dim of both CLIP encoders"
        raise LdmrtError("transformer", problem, expected=pooled, found=config["pooled_projection_dim"])
    width = sum(int(encoders[name].config.hidden_size) for name in CLIP)
    if width > config["joint_attention_dim"]:
        problem = "joint_attention_dim of transformer/config.json is below hidden_size of both CLIP encoders"
        found = config["joint_attention_dim"]
        raise LdmrtError("transformer", problem, expected=f"at least {width}", found=found)
    for encoder in encoders.values():
        if class_of(encoder) == T5 and (wide := int(encoder.config.hidden_size)) != config["joint_attention_dim"]:
            problem = "joint_attention_dim of transformer/config.json is not d_model of the T5 encoder"
            raise LdmrtError("transformer", problem, expected=wide, found=config["joint_attention_dim"])
