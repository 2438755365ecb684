"""Pictures as tensors, their cached moments, and the weights that training begins with."""

from dataclasses import replace

import numpy as np
import torch

from ldmrt.model import Autoencoder, AutoencoderConfig
from ldmrt.model.networks.autoencoder import moments
from ldmrt.model.networks.blocks import ResnetBlock
from ldmrt.model.training.data.captioned import Sample
from ldmrt.model.training.latents import LatentCache, encoded, sampled, to_tensor
from ldmrt.model.training.tasks.initialise import initialise
from ldmrt.model.training.tasks.presets import AUTOENCODER
from ldmrt.model.training.tasks.upscale import rescale

PICTURES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


def autoencoder(seed: int) -> Autoencoder:
    torch.manual_seed(seed)
    return Autoencoder(
        AutoencoderConfig(3, 3, ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2, (8, 8), 1, norm_num_groups=4)
    )


def test_cached_moments_are_those_of_encoding_afresh() -> None:
    vae = autoencoder(0).eval()
    sizes: list[int] = []
    cache = LatentCache(vae, "cpu", entries=2)
    encode = vae.encode
    vae.encode = lambda x: sizes.append(len(x)) or encode(x)  # type: ignore[method-assign, func-returns-value]
    for keys in ([0, 0], [1, 0], [2, 0, 1, 2], [2]):
        found = cache([Sample(PICTURES[key], "", (key,)) for key in keys])
        expected = encode(to_tensor([PICTURES[key] for key in keys], "cpu"))
        # float32 in a batch of another size: sums may be taken in another order
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)
        assert not found.requires_grad
    assert sizes == [1, 1, 1, 1]  # each picture once, but the third, for which there was no room
    assert set(cache.known) == {(0,), (1,)}


def test_cached_moments_do_not_depend_on_what_was_asked_for_before() -> None:
    torch.manual_seed(0)
    vae = Autoencoder(AUTOENCODER).eval()
    pictures = list(np.random.default_rng(1).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8))
    samples = [Sample(picture, "", (i,)) for i, picture in enumerate(pictures)]
    cache = LatentCache(vae, "cpu")
    cache(samples[:1])
    cache(samples[:4])
    assert torch.equal(cache(samples), LatentCache(vae, "cpu")(samples))


class Zeros:
    """Stands for random numbers that are all 0, so that latents are their means."""

    def normal(self, _: str, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.zeros(1, *shape)


def test_latents_are_shifted_and_scaled_as_the_sampler_takes_them_back() -> None:
    """As diffusers' trainings of Stable Diffusion 3: (latents - shift_factor) * scaling_factor."""
    vae = autoencoder(0).eval()
    vae.config = replace(vae.config, scaling_factor=1.5, shift_factor=0.25)
    parameters = encoded(vae, to_tensor(list(PICTURES), "cpu"))
    found = sampled(parameters, vae, Zeros())  # type: ignore[arg-type]
    expected = (moments(parameters)[0] - 0.25) * 1.5
    assert torch.equal(found, expected)


def test_another_scaling_factor_gives_the_same_latents_and_images() -> None:
    vae = autoencoder(0).eval()
    vae.config = replace(vae.config, scaling_factor=1.5, shift_factor=0.25)
    image = to_tensor([PICTURES[0]], "cpu")
    before = sampled(encoded(vae, image), vae, Zeros())  # type: ignore[arg-type]
    drawn = vae.decode(before / 1.5 + 0.25)
    other = rescale(vae, 0.5)
    shift = other.config.shift_factor or 0.0
    after = sampled(encoded(other, image), other, Zeros())  # type: ignore[arg-type]
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(other.decode(after / 0.5 + shift), drawn, rtol=1e-4, atol=1e-5)  # of rounding twice


def test_to_tensor_spans_minus_one_to_one() -> None:
    picture = np.zeros((2, 4, 3), np.uint8)
    picture[0, 3] = (255, 51, 0)
    out = to_tensor([picture], "cpu")
    assert out.shape == (1, 3, 2, 4)
    torch.testing.assert_close(out[0, :, 0, 3], torch.tensor([1.0, -0.6, -1.0]))
    assert (out[0, :, 1] == -1).all()


def test_initialised_residual_branches_begin_at_zero() -> None:
    vae = autoencoder(0)
    initialise(vae)
    blocks = [module for module in vae.modules() if isinstance(module, ResnetBlock)]
    assert blocks
    x = torch.randn(1, 8, 4, 4)
    assert all(torch.equal(block(x), x) for block in blocks)
    assert all((value != 0).any() for name, value in vae.named_parameters() if "conv1.weight" in name)
