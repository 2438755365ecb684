"""Random masks: their mean areas, their pixels, and whose random numbers they are of."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ldmrt.model.training.draws import Draws
from ldmrt.model.training.tasks.masks import COVERED, MASKS, cover, draw_masks

COUNT, SIZE = 2000, (20, 28)
MEANS = {"boxes": 21 * 29 / (4 * 20 * 28), "strokes": sum(COVERED) / 2, "all": 1.0}


@pytest.mark.slow(minutes=0.05)
@pytest.mark.parametrize("kind", list(MASKS))
def test_mean_area_is_that_of_the_formula(kind: str) -> None:
    masks = draw_masks(Draws(5, range(COUNT)), SIZE, [kind])
    assert masks.shape == (COUNT, 1, *SIZE)
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    areas = masks.mean(dim=(1, 2, 3)).double()
    error = areas.std().item() / math.sqrt(COUNT)
    assert abs(areas.mean().item() - MEANS[kind]) <= 4 * error  # 4 standard errors: 1 of 16000 draws would fail
    if kind == "strokes":  # every pixel alike, also those at the border
        each = masks.mean(dim=(0, 1)).double()
        assert (each - MEANS[kind]).abs().max().item() <= 5 * 0.5 / math.sqrt(COUNT)  # of 560 pixels: 1 of 3000
    if kind != "all":
        assert areas.std().item() > 0.1


def test_kinds_are_drawn_alike() -> None:
    masks = draw_masks(Draws(2, range(COUNT)), SIZE, ["boxes", "all", "all"])
    whole = (masks.mean(dim=(1, 2, 3)) == 1).double().mean().item()
    assert abs(whole - 2 / 3) <= 4 * math.sqrt(2 / 9 / COUNT) + 1 / 560  # a box may be as large as the image


def test_a_mask_is_that_of_its_sample() -> None:
    masks = draw_masks(Draws(3, range(6)), SIZE, list(MASKS))
    for samples in ([0, 1, 2], [5], [4, 3]):
        assert torch.equal(draw_masks(Draws(3, samples), SIZE, list(MASKS)), masks[samples])
    assert not torch.equal(draw_masks(Draws(4, range(6)), SIZE, list(MASKS)), masks)


def test_a_stroke_covers_what_is_near_its_line() -> None:
    """Beside a slow twin, which measures the distance of every pixel to many points of the line."""
    random = np.random.default_rng(0)
    for _ in range(50):
        start, way, radius = random.uniform(-9, 30, 2), random.uniform(-15, 15, 2), random.uniform(0.5, 4)
        mask = np.zeros(SIZE, bool)
        cover(mask, tuple(start), tuple(way), radius)
        points = start + np.linspace(0, 1, 3000)[:, None] * way
        y, x = np.mgrid[: SIZE[0], : SIZE[1]]
        near = np.min((y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2, axis=-1)
        unsure = np.abs(np.sqrt(near) - radius) < 0.01  # half the distance of two points
        assert np.array_equal(mask[~unsure], (near <= radius**2)[~unsure])
        assert unsure.mean() < 0.01


def test_it_is_made_as_small_as_latents_as_pipelines_do() -> None:
    from ldmrt.runtime.pipeline.request.images import small_mask

    masks = draw_masks(Draws(7, range(8)), (32, 48), ["boxes", "strokes"])
    ours = masks[:, :, ::8, ::8]
    assert torch.equal(ours, F.interpolate(masks, size=(4, 6)))  # the line of diffusers' prepare_mask_latents
    assert np.array_equal(ours.numpy(), small_mask(masks.numpy(), 8))
