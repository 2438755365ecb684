"""Build the transformer of Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv:2403.03206, section 4)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from ldmrt.model.config import RawConfig, from_config, positive
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.optional import unavailable

from .sinusoids import Sinusoids

PART = "transformer"


@dataclass(frozen=True)
class SD3Config:
    """Holds the fields of SD3Transformer2DModel's config; the defaults are diffusers'."""

    sample_size: int = 128
    patch_size: int = 2
    in_channels: int = 16
    num_layers: int = 18
    attention_head_dim: int = 64
    num_attention_heads: int = 18
    joint_attention_dim: int = 4096
    caption_projection_dim: int = 1152
    pooled_projection_dim: int = 2048
    out_channels: int | None = 16
    pos_embed_max_size: int = 96
    dual_attention_layers: tuple[int, ...] = ()
    qk_norm: str | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that no network can be built of, and widths that do not fit together."""
        positive(PART, self, "sample_size", "patch_size", "in_channels", "num_layers", "attention_head_dim")
        positive(PART, self, "num_attention_heads", "joint_attention_dim", "caption_projection_dim")
        positive(PART, self, "pooled_projection_dim", "out_channels", "pos_embed_max_size")
        width = self.num_attention_heads * self.attention_head_dim
        if self.caption_projection_dim != width:
            problem, found = "config has an invalid caption_projection_dim", self.caption_projection_dim
            raise LdmrtError(PART, problem, expected=f"{width}, of all heads", found=found)
        if self.qk_norm not in (None, "rms_norm"):
            raise LdmrtError(PART, "config has an invalid qk_norm", expected="rms_norm", found=self.qk_norm)
        if odd := [layer for layer in self.dual_attention_layers if not 0 <= layer < self.num_layers]:
            expected = f"layers 0 to {self.num_layers - 1}"
            raise LdmrtError(PART, "config has invalid dual_attention_layers", expected=expected, found=odd[0])
        if self.pos_embed_max_size < self.sample_size // self.patch_size:
            expected = f"at least {self.sample_size // self.patch_size}, for sample_size"
            problem, found = "config has an invalid pos_embed_max_size", self.pos_embed_max_size
            raise LdmrtError(PART, problem, expected=expected, found=found)

    @classmethod
    def read(cls, config: RawConfig) -> "SD3Config":
        """Read the content of the transformer's config.json; see `from_config`."""
        return from_config(cls, config, {}, PART)


if TYPE_CHECKING:

    class StableDiffusion3(nn.Module):
        """Stands for diffusers' class, which has no types; its config has these fields and is a dict too."""

        config: SD3Config


def stable_diffusion_3(config: RawConfig) -> "StableDiffusion3":
    """Build the transformer in diffusers' class, with random weights, or without on the meta device.

    Args:
        config: The content of its config.json.

    Raises:
        LdmrtError: The config is invalid, or diffusers is missing.
    """
    read = SD3Config.read(config)
    try:
        from diffusers import SD3Transformer2DModel
    except ImportError as error:
        raise unavailable(error, PART) from None
    network: Any = SD3Transformer2DModel(**vars(read))
    embedding = network.time_text_embed
    embedding.time_proj = Sinusoids(embedding.time_proj.num_channels)
    return cast("StableDiffusion3", network.eval())
