"""What an upscaler learns from: small images of large ones, noised at a level that it is told."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ldmrt.model import Autoencoder, AutoencoderConfig
from ldmrt.model.networks.plain_unet import PlainUNet
from ldmrt.model.training.data.captioned import Sample
from ldmrt.model.training.draws import Draws
from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.settings import Settings
from ldmrt.model.training.tasks.presets import NOISER, UPSCALER, UPSCALER_SCHEDULER
from ldmrt.model.training.tasks.upscaler import (
    Degradation,
    blurred,
    cropped,
    enlarged,
    first_weights,
    psnr_of,
    upscaler_task,
)
from ldmrt.runtime import LdmrtError

from ..tiny_runs import objective

IMAGES = torch.rand((64, 3, 24, 24), generator=torch.Generator().manual_seed(0)) * 2 - 1
VAE = AutoencoderConfig(3, 3, ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2, (8, 8), 1, norm_num_groups=4)


def draws() -> Draws:
    return Draws(1, range(len(IMAGES)))


def test_small_images_belong_to_their_large_ones() -> None:
    large, small = Degradation(crop=16, levels=4)(IMAGES, draws())
    assert large.shape == (64, 3, 16, 16)
    assert small.shape == (64, 3, 8, 8)
    means = torch.nn.functional.avg_pool2d(large, 2)
    errors = (small - means).abs().amax(dim=(1, 2, 3))
    same = float((errors < 1e-5).float().mean())
    assert 0.1 < same < 0.45  # a quarter is of plain means and not blurred: four standard deviations are 0.22
    shuffled = (small - means.roll(1, 0)).square().mean()
    assert (small - means).square().mean() < shuffled / 4  # those of other images


def test_half_of_the_large_images_are_mirrored_parts() -> None:
    large, _ = Degradation(crop=16, levels=4)(IMAGES, draws())
    parts = {False: IMAGES, True: IMAGES.flip(-1)}
    found = [
        {
            mirrored
            for mirrored, images in parts.items()
            for y in range(0, 10, 2)
            for x in range(0, 10, 2)
            if torch.equal(large[i], images[i, :, y : y + 16, x : x + 16])
        }
        for i in range(64)
    ]
    assert all(len(kinds) == 1 for kinds in found)
    assert 16 < sum(True in kinds for kinds in found) < 48  # four standard deviations


def test_half_of_the_small_images_have_the_autoencoders_faults() -> None:
    torch.manual_seed(0)
    vae = Autoencoder(VAE).eval()
    plain, through = (Degradation(24, 4, each)(IMAGES, draws())[1] for each in (None, vae))
    assert plain.shape == through.shape == (64, 3, 12, 12)
    far = (plain - through).abs().amax(dim=(1, 2, 3)) > 0.5  # random weights: nothing of the image is left
    assert 16 < int(far.sum()) < 48  # four standard deviations


def test_blur_equals_a_slow_twin() -> None:
    images, widths = IMAGES[:4, :, :6, :5].double(), torch.tensor([0.0, 0.3, 0.8, 2.0]).double()
    found = blurred(images, widths)
    for b, width in enumerate(widths.tolist()):
        weights = [float(np.exp(-0.5 * (k / max(width, 1e-3)) ** 2)) for k in range(-2, 3)]
        for y in range(6):
            for x in range(5):
                total = torch.zeros(3, dtype=torch.double)
                for i, one in enumerate(weights):
                    for j, other in enumerate(weights):
                        inside = min(max(y + i - 2, 0), 5), min(max(x + j - 2, 0), 4)
                        total += one * other / sum(weights) ** 2 * images[b, :, inside[0], inside[1]]
                torch.testing.assert_close(found[b, :, y, x], total)
    assert torch.equal(found[0], images[0])


def test_crops_are_slices() -> None:
    found = cropped(IMAGES[:2], torch.tensor([[1, 3], [8, 0]]), 5)
    assert torch.equal(found, torch.stack([IMAGES[0, :, 1:6, 3:8], IMAGES[1, :, 8:13, 0:5]]))


@pytest.mark.parametrize(
    ("crop", "size", "vae", "words"),
    [
        (16, 25, False, "unsupported --size; expected a multiple of 2; found 25"),
        (16, 26, True, "unsupported --size; expected a multiple of 4; found 26"),
        (32, 24, False, "unsupported --crop; expected a multiple of 8 up to --size, 24; found 32"),
        (12, 24, False, "unsupported --crop; expected a multiple of 8"),
        (0, 24, False, "unsupported --crop"),
    ],
)
def test_sizes_that_cannot_be_halved_are_refused(crop: int, size: int, vae: bool, words: str) -> None:
    degradation = Degradation(crop, 4, Autoencoder(VAE) if vae else None)
    with pytest.raises(LdmrtError, match=words):
        degradation.check(size, 8)
    replace(degradation, crop=24).check(24, 8)


class Asked(nn.Module):
    """Predicts zero, and remembers what it was asked: then the loss is the mean square of the target."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, sample: Tensor, t: Tensor, *, class_labels: Tensor) -> Tensor:
        self.asked.append((sample, t, class_labels))
        return self.weight * sample[:, :3]


class Grey:
    """Flat images, whose small ones are as flat."""

    def draw(self, seed: int, index: int) -> Sample:
        return Sample(np.full((16, 16, 3), 40 * (index % 7), np.uint8), "", (index,))


def test_state_and_image_are_noised_as_by_diffusers() -> None:
    """Each at a time of its own: what is left after the signal is noise of the size that diffusers' would have."""
    unet, count = Asked(), 256
    run: Run = Run(unet, Settings(1, count, 1e-3))
    task = upscaler_task(unet, Grey(), Degradation(16, 64), objective(UPSCALER_SCHEDULER), NOISER)  # type: ignore[arg-type]
    (progress,) = run.optimise(task)
    ((sample, t, levels),) = unet.asked
    clean = torch.tensor([40.0 * (i % 7) for i in range(count)]) / 127.5 - 1
    assert len(set(t.tolist())) > 100
    assert 0 <= int(levels.min()) < 2
    assert 60 < int(levels.max()) < 64
    assert abs(float((levels < 16).float().mean()) - 0.5) < 0.125  # a square below a quarter: four standard deviations
    for part, times, config in ((sample[:, :3], t, UPSCALER_SCHEDULER), (sample[:, 3:], levels, NOISER)):
        scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
        zeros, ones = (torch.full(part.shape, value) for value in (0.0, 1.0))
        signal = scheduler.add_noise(clean[:, None, None, None].expand(part.shape), zeros, times)
        scale = scheduler.add_noise(zeros, ones, times)
        eps = (part - signal) / scale
        assert abs(float(eps.mean())) < 0.02  # 196,608 numbers: nine standard deviations
        assert (eps.std(dim=(1, 2, 3)) - 1).abs().max() < 0.15  # 768 numbers each: five to six standard deviations
    assert progress.loss == pytest.approx(float(clean.square().mean()), rel=1e-5)  # the target is the image


def test_psnr_is_that_of_the_first_step() -> None:
    class Given(nn.Module):
        def forward(self, sample: Tensor, t: Tensor, *, class_labels: Tensor) -> Tensor:
            assert set(t.tolist()) == {999}
            assert set(class_labels.tolist()) == {level}
            return sample[:, 3:]

    images = IMAGES[:4]
    small = torch.nn.functional.avg_pool2d(images, 2)
    error = (enlarged(small) - images).square().mean(dim=(1, 2, 3)) / 4
    for level in (0, 63):
        found = psnr_of(Given(), images, NOISER, level)  # type: ignore[arg-type]
        if level == 0:
            assert found == pytest.approx(float(-10 * error.log10().mean()), abs=0.05)  # a noise of 0.01 is left
        else:
            assert found < float(-10 * error.log10().mean()) - 0.1


def test_the_preset_is_small_and_of_any_even_size() -> None:
    """Below 15 MB in float32, and below 8 in float16."""
    unet = PlainUNet(UPSCALER).eval()
    assert 2e6 < sum(value.numel() for value in unet.state_dict().values()) < 15e6 / 4
    sample, times, levels = torch.randn(1, 6, 34, 18), torch.tensor([500]), torch.tensor([3])
    assert unet(sample, times, class_labels=levels).shape == (1, 3, 34, 18)


@pytest.mark.parametrize("groups", [2, 8])
@torch.no_grad()
def test_the_first_prediction_is_the_small_image_enlarged(groups: int) -> None:
    torch.manual_seed(0)
    unet = PlainUNet(replace(UPSCALER, norm_num_groups=groups)).eval()
    first_weights(unet)
    times, levels = torch.tensor([5, 900]), torch.tensor([0, 63])
    images = {"even": IMAGES[:2], "flat": torch.ones(2, 3, 24, 24), "of two colours": IMAGES[:2].sign()}
    for name, image in images.items():
        found = unet(torch.cat([torch.randn_like(image), image], dim=1), times, class_labels=levels)
        # The variance of a group is in part the image's, the more the smaller the group.
        assert float((found - image).abs().max()) < (0.02 if groups == 2 else 0.06), name


def test_first_weights_need_groups_of_fours() -> None:
    with pytest.raises(ValueError, match="32 channels in 16 groups"):
        first_weights(PlainUNet(replace(UPSCALER, norm_num_groups=16)))


def test_everything_is_learned_from_the_first_weights() -> None:
    """The branches begin at zero, so the second step's gradients are looked at."""
    torch.manual_seed(0)
    unet = PlainUNet(UPSCALER)
    first_weights(unet)
    optimizer = torch.optim.SGD(unet.parameters(), lr=0.01)
    sample, times, levels = torch.randn(2, 6, 16, 16), torch.tensor([500, 20]), torch.tensor([3, 0])
    for _ in range(3):
        optimizer.zero_grad()
        unet(sample, times, class_labels=levels).square().mean().backward()
        optimizer.step()
    still = [name for name, value in unet.named_parameters() if not float(value.grad.abs().max())]  # type: ignore
    assert still == []
