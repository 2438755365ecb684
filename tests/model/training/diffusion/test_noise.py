"""Noise of many resolutions, beside the lines of its article."""

import torch
from torch import Tensor, nn

from ldmrt.model.training.diffusion.noise import SCALES, pyramid_noise
from ldmrt.model.training.draws import Draws

DISCOUNT = 0.8


def article(noise: Tensor, draws: Draws) -> Tensor:
    """Whitaker's lines for one image, with the random numbers of `draws`."""
    _, c, w, h = noise.shape
    u = nn.Upsample(size=(w, h), mode="bilinear")
    for i in range(SCALES):
        r = draws.uniform(f"pyramid ratio {i}").item() * 2 + 2
        w, h = max(1, int(w / (r**i))), max(1, int(h / (r**i)))
        noise = noise + u(draws.normal(f"pyramid noise {i}", (c, w, h))) * DISCOUNT**i
        if w == 1 or h == 1:
            break
    return noise / noise.std()


def test_pyramid_noise_is_that_of_its_article() -> None:
    draws = Draws(3, range(5))
    noise = draws.normal("noise", (4, 16, 12))
    found = pyramid_noise(noise, draws, DISCOUNT)
    expected = torch.cat([article(noise[i : i + 1], Draws(3, [i])) for i in range(5)])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # float32, roundings of about ten sums


def test_a_samples_noise_does_not_depend_on_its_batch() -> None:
    draws = Draws(3, range(5))
    noise = draws.normal("noise", (4, 16, 12))
    alone = pyramid_noise(noise[2:3], Draws(3, [2]), DISCOUNT)
    assert torch.equal(pyramid_noise(noise, draws, DISCOUNT)[2:3], alone)
