"""Mirrored and cropped images: by the sample's place in the stream, beside slow twins."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmrt.model import Autoencoder, AutoencoderConfig
from ldmrt.model.training.data.augmentation import Augmentation, View, says_a_side
from ldmrt.model.training.data.batches import Batches
from ldmrt.model.training.data.buckets import BucketedImages
from ldmrt.model.training.data.captioned import ImageFolder, fitted, sizes_of
from ldmrt.model.training.latents import LatentCache
from ldmrt.model.training.validation import split

BOTH = Augmentation(flip=True, crop=True)


@pytest.fixture
def images(tmp_path: Path) -> ImageFolder:
    sizes = {f"{i}.png": size for i, size in enumerate([(40, 30), (30, 40), (64, 32), (33, 33)])}
    for i, (name, size) in enumerate(sizes.items()):
        pixels = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    return replace(ImageFolder.open(tmp_path, size=16, prompt="a"), shapes=sizes)


def test_without_augmentation_nothing_changes(images: ImageFolder) -> None:
    for index in range(8):
        sample = images.draw(0, index)
        assert len(sample.key) == 1
        assert not sample.once
        np.testing.assert_array_equal(sample.image, fitted(images.folder / str(sample.key[0]), (16, 16)))


def test_a_half_is_mirrored_and_the_key_says_which(images: ImageFolder) -> None:
    flipped, plain = replace(images, augmentation=Augmentation(flip=True)), images
    mirrored = 0
    for index in range(1000):
        sample, before = flipped.draw(3, index), plain.draw(3, index)
        assert sample.key[0] == before.key[0]
        mirrored += sample.key[1:] == ("mirrored",)
        if index < 40:
            turned = before.image[:, ::-1] if sample.key[1:] else before.image
            np.testing.assert_array_equal(sample.image, turned)
    assert abs(mirrored - 500) < 64  # four standard deviations of 1000 draws
    assert [flipped.draw(4, i).key for i in range(40)] != [flipped.draw(3, i).key for i in range(40)]


def test_the_cache_of_latents_holds_both(images: ImageFolder) -> None:
    config = AutoencoderConfig(3, 3, ("DownEncoderBlock2D",), ("UpDecoderBlock2D",), (4,), 1, norm_num_groups=2)
    cache = LatentCache(Autoencoder(config).eval(), "cpu")
    loaded = Batches(replace(images, augmentation=Augmentation(flip=True)), 0, 4, wanted=cache.lacks)
    for step in range(12):
        cache(loaded(step))
    assert Counter(len(key) for key in cache.known) == {1: 4, 2: 4}
    crops = Batches(replace(images, augmentation=Augmentation(crop=True)), 0, 4, wanted=cache.lacks)
    assert cache(crops(0)).shape[0] == 4
    assert len(cache.known) == 8  # crops do not come again


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("place", [None, (0.0, 0.0), (0.999, 0.999), (0.3, 0.6)])
@pytest.mark.parametrize("size", [(48, 32), (32, 48), (50, 32), (32, 32)])
def test_sizes_are_those_of_the_slow_twin(
    size: tuple[int, int], place: tuple[float, float] | None, mirrored: bool, tmp_path: Path
) -> None:
    """At a scale of 1 nothing is rounded: mirror the whole image, and cut at the place that SDXL is told."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    view = View(mirrored, place)
    sizes = sizes_of(size, (32, 32), view)
    whole = pixels[:, ::-1] if mirrored else pixels
    top, left = sizes.crop
    np.testing.assert_array_equal(fitted(tmp_path / "a.png", (32, 32), view), whole[top : top + 32, left : left + 32])
    assert (sizes.original, sizes.target) == ((size[1], size[0]), (32, 32))


def test_crops_are_uniform(images: ImageFolder) -> None:
    cropped = replace(images, augmentation=Augmentation(crop=True))
    samples = [sample for sample in (cropped.draw(0, i) for i in range(1600)) if sample.key[0] == "2.png"]
    assert all(sample.once and sample.sizes is not None and sample.sizes.crop[0] == 0 for sample in samples)
    lefts = Counter(sample.sizes.crop[1] for sample in samples if sample.sizes)  # of 32 pixels along the width, 16
    assert set(lefts) == set(range(17))
    assert max(lefts.values()) < 400 / 17 + 5 * np.sqrt(400 / 17)  # five standard deviations


def test_shapes_are_augmented_too(images: ImageFolder) -> None:
    bucketed = BucketedImages.of(replace(images, augmentation=BOTH), [(16, 16), (24, 16), (16, 24)])
    again = [bucketed.draw(1, i) for i in range(20)]
    assert {len(sample.key) for sample in again} == {4, 5}
    for i, sample in enumerate(again):
        assert bucketed.draw(1, i).key == sample.key
        np.testing.assert_array_equal(bucketed.draw(1, i).image, sample.image)


def test_a_skipped_image_makes_way_for_the_same_sample_as_in_the_run(images: ImageFolder) -> None:
    """Known before the first step or found in it: the next of the stream with its own chances."""
    data = replace(images, augmentation=BOTH)
    known = replace(data, skipped=frozenset({"1.png"}))
    for index in range(40):
        if data.draw(5, index).key[0] == "1.png" and data.draw(5, index + 1).key[0] != "1.png":
            assert known.draw(5, index).key == data.draw(5, index + 1).key


def test_held_out_images_are_not_augmented(images: ImageFolder) -> None:
    train, held = split(replace(images, augmentation=BOTH), 0.5)
    assert train.augmentation == BOTH
    assert held.augmentation == Augmentation()


def test_words_for_sides() -> None:
    assert says_a_side("a cat on the Left.")
    assert says_a_side("right-handed")
    assert not says_a_side("bright leftovers")
