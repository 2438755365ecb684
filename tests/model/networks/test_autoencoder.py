"""The autoencoder against diffusers' AutoencoderKL with the same weights."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from ldmrt.model import Autoencoder, AutoencoderConfig
from ldmrt.model.config import to_config
from ldmrt.model.networks.autoencoder import kl_divergence, moments
from ldmrt.runtime import LdmrtError


def config(*widths: int, **change: Any) -> dict[str, Any]:
    plain = {
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "block_out_channels": widths,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    return plain | change


CONFIGS = {
    "two levels": config(8, 16),
    "three levels, two layers": config(8, 16, 16, layers_per_block=2),
    "four levels": config(8, 8, 16, 24),
    **{act: config(8, 16, act_fn=act) for act in ("swish", "mish", "gelu", "relu", "ReLU")},
    "two sides": config(8, 16, sample_size=(16, 24)),
    "six latent channels": config(8, 16, latent_channels=6),
    "no quant_conv": config(8, 16, use_quant_conv=False),
    "no post_quant_conv": config(8, 16, use_post_quant_conv=False),
    "no attention in the middle": config(8, 16, mid_block_add_attention=False),
    "nulls": config(8, 16, use_quant_conv=None, mid_block_add_attention=None, force_upcast=None),
    "neutral latents": config(8, 16, latents_mean=[0.0] * 4, latents_std=[1.0] * 4, shift_factor=0.1),
    "one level": config(8),
    "five levels": config(4, 4, 8, 8, 12),
    "grey to colour, other groups": config(8, 16, in_channels=1, norm_num_groups=8),
}

# In float64 another order of sums makes 1e-14, and a norm's eps of 1e-5 for 1e-6 makes 1e-7 or more.
CLOSE = 1e-9


def pair(settings: dict[str, Any]) -> tuple[Autoencoder, AutoencoderKL]:
    """Ours, read from their whole config, and theirs; no weight keeps the one or zero that hides a mistake."""
    torch.manual_seed(1)
    theirs = AutoencoderKL(**settings).double().eval()
    with torch.no_grad():
        for value in theirs.parameters():
            value.add_(0.1 * torch.randn_like(value))
    ours = Autoencoder(AutoencoderConfig.read(dict(theirs.config))).double().eval()
    assert list(ours.state_dict())
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def unlike(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_equals_diffusers(name: str) -> None:
    ours, theirs = pair(CONFIGS[name])
    f = ours.config.factor
    picture = torch.randn(2, ours.config.in_channels, 2 * f, 3 * f, generator=torch.Generator().manual_seed(2)).double()
    expected = theirs.encode(picture).latent_dist.parameters
    assert expected.shape == (2, 2 * ours.config.latent_channels, 2, 3)
    assert unlike(ours.encode(picture), expected) <= CLOSE
    latent = expected[:, : ours.config.latent_channels] + 1.0
    decoded = theirs.decode(latent).sample
    assert decoded.shape == (2, 3, 2 * f, 3 * f)
    assert unlike(ours.decode(latent), decoded) <= CLOSE
    assert AutoencoderConfig.read(to_config("AutoencoderKL", ours.config)) == ours.config


def test_moments_and_divergence_equal_diffusers() -> None:
    parameters = 40 * torch.randn(2, 8, 3, 5, generator=torch.Generator().manual_seed(3))  # both clamps are reached
    theirs = DiagonalGaussianDistribution(parameters)
    mean, log_variance = moments(parameters)
    assert (log_variance == -30).any()
    assert (log_variance == 20).any()
    assert torch.equal(mean, theirs.mean)
    assert torch.equal(log_variance, theirs.logvar)
    # theirs sums over a picture, ours is a mean; 1e-6: float32 sums in another order
    torch.testing.assert_close(kl_divergence(mean, log_variance), theirs.kl() / mean[0].numel(), rtol=1e-6, atol=0.0)


def test_divergence_of_the_unit_gaussian_is_zero() -> None:
    assert kl_divergence(torch.zeros(2, 4, 2, 2), torch.zeros(2, 4, 2, 2)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "down_block_types"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types"),
        ({"act_fn": "tanh"}, "act_fn"),
        ({"scaling_factor": float("nan")}, "scaling_factor"),
        ({"scaling_factor": 1e300}, "scaling_factor"),
        ({"scaling_factor": -1.0}, "scaling_factor"),
        ({"shift_factor": "much"}, "shift_factor"),
        ({"latents_std": [1.0, 1.0, 1.0, 2.0]}, "latents_std"),
        ({"latents_mean": [0.0, 0.0, 0.0, 0.1]}, "latents_mean"),
        ({"frobnicate": 1}, "frobnicate"),
        ({"block_out_channels": 8}, "vae"),
        ({"use_quant_conv": "no"}, "use_quant_conv"),
        ({"mid_block_add_attention": "yes"}, "mid_block_add_attention"),
        ({"block_out_channels": [8, 18]}, "18"),
        ({"norm_num_groups": 0}, "norm_num_groups"),
        ({"latent_channels": "four"}, "latent_channels"),
    ],
)
def test_config_that_cannot_be_built_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in config(8, 16).items()}
    with pytest.raises(LdmrtError, match=named):
        AutoencoderConfig.read(settings | change)  # before a weight is made
