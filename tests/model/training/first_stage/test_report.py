"""The report of an autoencoder equals scikit-image and the plain formulas."""

import math

import pytest
import torch
from skimage import metrics
from torch.distributions import Normal, kl_divergence

from ldmrt.model.networks.autoencoder import Autoencoder, AutoencoderConfig, moments
from ldmrt.model.networks.vq_autoencoder import VQAutoencoder, VQConfig
from ldmrt.model.training.first_stage.report import report, ssim

SHAPE = {
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8), "norm_num_groups": 4,
}  # fmt: skip


def test_ssim_is_that_of_scikit_image() -> None:
    torch.manual_seed(0)
    first = torch.rand(3, 3, 20, 13) * 2 - 1
    second = (first + 0.2 * torch.randn_like(first)).clamp(-1, 1)
    for found, one, other in zip(ssim(first, second, 2.0), first, second, strict=True):
        expected = metrics.structural_similarity(
            one.double().numpy(), other.double().numpy(), channel_axis=0, data_range=2.0
        )
        assert found.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_report_equals_the_formulas_over_all_images_at_once(kind: str) -> None:
    torch.manual_seed(0)
    vae = (
        Autoencoder(AutoencoderConfig(latent_channels=2, **SHAPE))
        if kind == "kl"
        else VQAutoencoder(VQConfig(latent_channels=2, num_vq_embeddings=5, **SHAPE))
    ).eval()
    x = torch.rand(5, 3, 8, 8) * 2 - 1
    found = report(vae, [x[:3], x[3:]])
    with torch.no_grad():
        encoded = vae.encode(x)
        latents, log_variance = moments(encoded) if kind == "kl" else (encoded, encoded)
        back = vae.decode(latents).clamp(-1, 1)
    assert found.images == 5
    # 1e-5: other sizes of batch round otherwise in float32
    psnr = metrics.peak_signal_noise_ratio(x.numpy(), back.numpy(), data_range=2.0)
    assert found.psnr == pytest.approx(psnr, rel=1e-5)
    assert found.l1 == pytest.approx((x - back).abs().mean().item(), rel=1e-5)
    assert (found.mean, found.deviation) == pytest.approx((latents.mean().item(), latents.std().item()), rel=1e-5)
    assert found.scaling_factor == pytest.approx(1 / latents.std().item(), rel=1e-5)
    if kind == "vq":
        share = torch.bincount(vae.quantize.codes(latents).flatten()) / latents[:, 0].numel()
        assert found.perplexity == pytest.approx(
            torch.distributions.Categorical(share).entropy().exp().item(), rel=1e-5
        )
        assert found.active is None
        assert "code perplexity" in str(found)
        return
    nats = kl_divergence(Normal(latents, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    assert found.bits_an_image == pytest.approx(nats.sum().item() / 5 / math.log(2), rel=1e-5)
    assert found.bits_a_latent == pytest.approx(nats.mean().item() / math.log(2), rel=1e-5)
    assert found.active == (nats.mean(dim=0) > 0.01).sum()
    assert "bits a latent" in str(found)
