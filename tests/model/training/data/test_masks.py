"""Masks of the loss: averaged over each latent's area, cropped and mirrored as the images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldmrt.model.training.data.augmentation import CENTRE, Augmentation, View
from ldmrt.model.training.data.buckets import BucketedImages
from ldmrt.model.training.data.captioned import ImageFolder, fitted
from ldmrt.model.training.data.masks import LossMasks
from ldmrt.runtime import LdmrtError


def alphas(size: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size[::-1], dtype=np.uint8)


@pytest.fixture
def images(tmp_path: Path) -> ImageFolder:
    """Two images whose alpha is that of the masks in another folder."""
    folder, shapes = tmp_path / "images", {"0.png": (16, 24), "1.png": (24, 16)}
    folder.mkdir()
    (tmp_path / "masks").mkdir()
    for seed, (name, size) in enumerate(shapes.items()):
        alpha = alphas(size, seed)
        Image.fromarray(np.dstack([alpha] * 4)).save(folder / name)
        Image.fromarray(alpha).save(tmp_path / "masks" / name)
    opened = ImageFolder.open(folder, size=16, prompt="a picture")
    return replace(opened, shapes=shapes)


def test_a_mask_is_the_mean_over_the_area_of_a_latent(images: ImageFolder, tmp_path: Path) -> None:
    """As kohya's sd-scripts resize it."""
    row = next(row for row in images.rows if row.file_name == "0.png")
    sample = images.sample(row, (16, 16), 0, 0)
    alpha = torch.from_numpy(alphas((16, 24), 0)[4:20])[None, None].double() / 255
    expected = torch.nn.functional.interpolate(alpha, size=(8, 8), mode="area")
    for masks in (LossMasks(images), LossMasks(images, tmp_path / "masks")):
        found = masks([sample, sample], (8, 8))
        assert found.shape == (2, 1, 8, 8)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found[:1], expected, rtol=1e-6)  # roundings of means to float32
        assert np.array_equal(found[0], found[1])


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(flip=True), Augmentation(True, True)])
@pytest.mark.parametrize("buckets", [False, True])
def test_a_mask_is_cropped_and_mirrored_as_its_image(
    images: ImageFolder, augmentation: Augmentation, buckets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image's grey is the alpha, and images are only cropped: averaged over areas, they are the masks."""
    images = replace(images, augmentation=augmentation)
    data = BucketedImages.of(images, [(16, 20), (20, 16)]) if buckets else images
    monkeypatch.setattr("ldmrt.model.training.data.captioned.read_image", lambda file, least: alpha_of(file))
    masks, views = LossMasks(images), set()
    for index in range(12):
        sample = data.draw(0, index)
        width, height = images.shape_of(sample)
        expected = sample.image[..., 0] / 255.0
        expected = expected.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
        found = masks([sample], (height // 2, width // 2))[0, 0]
        np.testing.assert_allclose(found, expected, rtol=1e-6)  # roundings of means to float32
        views.add(sample.key)
        assert View.of(sample.key[1:]) == augmentation.view(0, index)
    assert masks.known.keys() == (set() if augmentation.crop else views)  # random crops hardly come again
    assert len(views) == (2 if augmentation == Augmentation() else 4 if not augmentation.crop else 12)


def alpha_of(file: object) -> Image.Image:
    with Image.open(file) as opened:  # type: ignore[arg-type]
        return Image.merge("RGB", [opened.getchannel("A")] * 3)


def test_views_are_read_from_keys() -> None:
    for view in (CENTRE, View(mirrored=True), View(place=(0.25, 0.5)), View(True, (0.0, 1.0))):
        assert View.of(view.key) == view


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGB and tRNS", "1"])
def test_masks_of_ones_are_ones(images: ImageFolder, tmp_path: Path, mode: str) -> None:
    """To the bit, for any kind of opaque image and any size of latents."""
    folder = tmp_path / "masks" if mode == "1" else None
    for name, size in images.shapes.items():
        grey = Image.fromarray(alphas(size, 3))
        if mode == "1":
            Image.new("1", size, 1).save(tmp_path / "masks" / name)
        elif mode == "PA":
            grey.convert("P").save(images.folder / name, transparency=b"\xff" * 256)
        elif mode == "RGB and tRNS":
            Image.new("RGB", size, "red").save(images.folder / name, transparency=(1, 2, 3))
        else:
            grey.convert(mode).save(images.folder / name)
    masks = LossMasks(images, folder)
    masks.check(images)
    for grid in ((16, 16), (8, 8), (5, 7), (1, 1)):
        masks.known.clear()
        assert (masks([images.draw(0, i) for i in range(2)], grid) == 1.0).all()


def test_missing_masks_are_named(images: ImageFolder, tmp_path: Path) -> None:
    LossMasks(images).check(images)
    masks = LossMasks(images, tmp_path / "masks")
    masks.check(images)
    (tmp_path / "masks" / "1.png").unlink()
    with pytest.raises(LdmrtError, match=r"1\.png has no mask \(.*masks/1\.png is missing\)"):
        masks.check(images)
    masks.check(replace(images, skipped=frozenset(["1.png"])))
    for name in images.shapes:
        Image.new("RGB", (16, 16)).save(images.folder / name)
    with pytest.raises(LdmrtError, match=r"2 images of .* cannot be used") as caught:
        LossMasks(images).check(images)
    assert all(f"{name} has no mask (no alpha, its mode is RGB)" in str(caught.value) for name in images.shapes)
    assert caught.value.hint == "masks for all images, or no --loss-mask"


def test_a_mask_is_as_large_as_its_image(images: ImageFolder, tmp_path: Path) -> None:
    masks = LossMasks(images, tmp_path / "masks")
    Image.new("L", (8, 16)).save(tmp_path / "masks" / "0.png")
    with pytest.raises(LdmrtError, match=r"masks/0\.png is not as large as its image; expected 16x24; found 8x16"):
        masks([images.draw(0, i) for i in range(2)], (8, 8))


def test_masks_beside_jpegs_may_be_png(images: ImageFolder, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(images.folder / "2.jpg")
    Image.new("L", (16, 16), 51).save(tmp_path / "masks" / "2.png")
    opened = ImageFolder.open(images.folder, size=16, prompt="a picture")
    masks = LossMasks(opened, tmp_path / "masks")
    masks.check(opened)
    sample = opened.sample(opened.rows[2], (16, 16), 0, 0)
    assert (masks([sample], (2, 2)) == np.float32(0.2)).all()


@pytest.mark.filterwarnings("ignore:.*composed on white")
def test_the_image_is_laid_on_white_as_without_a_mask(images: ImageFolder) -> None:
    found = fitted(images.folder / "0.png", (16, 16))
    alpha = alphas((16, 24), 0)[4:20, :, None] / 255.0
    expected = 255 * (alpha * alpha + 1 - alpha)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1.0)  # of 8 bits
