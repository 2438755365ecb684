"""Build the transformer of Sana (Xie et al. 2024, arXiv:2410.10629)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from ldmrt.model.config import RawConfig, from_config, positive, within
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.optional import unavailable

from .linear_attention import TokenAttention
from .masked_attention import Mask, MaskedAttention
from .pixart import GridPositions, Patches, Prediction, Unpack
from .sinusoids import Sinusoids

PART = "transformer"
# Keys of the config that ask for nothing; the first two are those of Sana-Sprint, which needs the SCM scheduler.
NEUTRAL: RawConfig = {"guidance_embeds": False, "guidance_embeds_scale": 0.1, "dropout": 0}
QK_NORMS = (None, "rms_norm_across_heads")


@dataclass(frozen=True)
class SanaConfig:
    """Holds the fields of SanaTransformer2DModel's config; the defaults are diffusers'."""

    in_channels: int = 32
    out_channels: int | None = 32
    num_attention_heads: int = 70
    attention_head_dim: int = 32
    num_layers: int = 20
    num_cross_attention_heads: int = 20
    cross_attention_head_dim: int = 112
    cross_attention_dim: int = 2240
    caption_channels: int = 2304
    mlp_ratio: float = 2.5
    attention_bias: bool = False
    sample_size: int = 32
    patch_size: int = 1
    norm_elementwise_affine: bool = False
    norm_eps: float = 1e-6
    interpolation_scale: float | None = None
    qk_norm: str | None = None
    timestep_scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse sizes that no network can be built of, and widths that do not fit together."""
        positive(PART, self, "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "num_layers")
        positive(PART, self, "num_cross_attention_heads", "cross_attention_head_dim", "cross_attention_dim")
        positive(PART, self, "sample_size", "patch_size", "caption_channels")
        within(PART, self, "norm_eps", 0, 1)
        within(PART, self, "timestep_scale", 1e-6, 1e6)
        within(PART, self, "mlp_ratio", 1 / self.width, 1e3)
        if self.interpolation_scale is not None:
            within(PART, self, "interpolation_scale", 1e-3, 1e3)
            if self.width % 4:
                problem, expected = "config has an invalid attention_head_dim", "a width of all heads that 4 divides"
                raise LdmrtError(PART, problem, expected=expected, found=self.width)
        if self.cross_attention_dim != self.width:
            problem, found = "config has an invalid cross_attention_dim", self.cross_attention_dim
            raise LdmrtError(PART, problem, expected=f"{self.width}, of all heads", found=found)
        if self.qk_norm not in QK_NORMS:
            raise LdmrtError(PART, "config has an invalid qk_norm", expected=QK_NORMS, found=repr(self.qk_norm))
        if self.sample_size < self.patch_size:
            problem, found = "config has an invalid sample_size", self.sample_size
            raise LdmrtError(PART, problem, expected=f"at least {self.patch_size}, of a patch", found=found)

    @property
    def width(self) -> int:
        """Return the width of a token, of all heads."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def read(cls, config: RawConfig) -> "SanaConfig":
        """Read the content of the transformer's config.json; see `from_config`."""
        return from_config(cls, config, NEUTRAL, PART)


if TYPE_CHECKING:

    class Sana(nn.Module):
        """Stands for diffusers' class, which has no types; its config has these fields and is a dict too."""

        config: SanaConfig


class ScaledTime(nn.Module):
    """Multiplies timesteps by what the network was trained with, as diffusers' pipeline does."""

    def __init__(self, scale: float) -> None:
        """Take the factor."""
        super().__init__()
        self.scale = scale

    def forward(self, timesteps: Tensor) -> Tensor:
        """Return timesteps, (B,) in float32."""
        return timesteps * self.scale


def sana(config: RawConfig) -> "Sana":
    """Build the transformer in diffusers' class, with random weights, or without on the meta device.

    Args:
        config: The content of its config.json.

    Raises:
        LdmrtError: The config is invalid, or diffusers is missing.
    """
    read = SanaConfig.read(config)
    try:
        from diffusers import SanaTransformer2DModel
    except ImportError as error:
        raise unavailable(error, PART) from None
    network: Any = SanaTransformer2DModel(**vars(read))
    if read.interpolation_scale is not None:
        scale, base = read.interpolation_scale, read.sample_size // read.patch_size
        positions = GridPositions(read.width, read.patch_size, base, scale)
        network.patch_embed = Patches(network.patch_embed.proj, positions)
    embedding = network.time_embed.emb
    embedding.time_proj = Sinusoids(embedding.time_proj.num_channels)
    for block in network.transformer_blocks:
        block.attn1.set_processor(TokenAttention())
        block.attn2.set_processor(MaskedAttention())
    network.scaled_time, network.mask = ScaledTime(read.timestep_scale), Mask()
    network.unpack, network.prediction = Unpack(read.patch_size), Prediction(read.in_channels)
    return cast("Sana", network.eval())
