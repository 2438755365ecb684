"""Images of several shapes: which shapes there are, which an image gets, and batches of one shape each."""

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.training_utils import find_nearest_bucket, generate_aspect_ratio_buckets
from PIL import Image
from torch import Tensor, nn

from ldmrt.model.training.data.batches import Batches
from ldmrt.model.training.data.buckets import LONGER, BucketedImages, bucket_shapes, nearest
from ldmrt.model.training.data.captioned import ImageFolder, Sample, Shape, fitted, sizes_of
from ldmrt.model.training.data.image_check import check_images
from ldmrt.model.training.draws import Draws
from ldmrt.model.training.latents import to_tensor
from ldmrt.model.training.loop.run import Losses, Run, TrainingTask
from ldmrt.model.training.loop.settings import Settings
from ldmrt.model.training.validation import split, validation_losses
from ldmrt.runtime import LdmrtError

SIZE, UNIT, COUNT = 32, 8, 23
SIDES = ((32, 32), (64, 32), (30, 40), (33, 90), (144, 72))  # width, height
CASES = [(512, 64), (512, 8), (1024, 64), (64, 16), (96, 32), (8, 8)]


@pytest.fixture
def images(tmp_path: Path) -> ImageFolder:
    """Twenty-three images of noise, of five shapes."""
    rows, shapes = [], {}
    for i in range(COUNT):
        shapes[f"{i}.png"] = (width, height) = SIDES[i * i % len(SIDES)]
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": f"image {i}"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    return replace(ImageFolder.open(tmp_path, size=SIZE), shapes=shapes)


def steps_of(data: BucketedImages, batch: int) -> int:
    """The steps of an epoch."""
    return sum(-(-len(rows) // batch) for _, rows in data.groups)


@pytest.fixture
def data(images: ImageFolder) -> BucketedImages:
    return BucketedImages.of(images, bucket_shapes(SIZE, UNIT))


@pytest.mark.parametrize(("size", "unit"), CASES)
def test_shapes_are_the_largest_of_all_that_are_allowed(size: int, unit: int) -> None:
    sides = [side for side in range(unit, 4 * size, unit) if size <= LONGER * side <= LONGER**2 * size]
    allowed = [(w, h) for w in sides for h in sides if w * h <= size**2]
    largest = [one for one in allowed if not any(w >= one[0] and h >= one[1] and (w, h) != one for w, h in allowed)]
    assert list(bucket_shapes(size, unit)) == sorted(largest)
    assert (size, size) in largest


@pytest.mark.parametrize(("size", "unit"), CASES)
def test_shapes_of_diffusers_fit_into_these(size: int, unit: int) -> None:
    """Theirs are rounded to the nearest area, ours are below; where theirs are too, they are ours or inside one."""
    theirs = [(w, h) for h, w in generate_aspect_ratio_buckets(size, unit) if max(w, h) <= LONGER * size]
    ours = bucket_shapes(size, unit)
    below = [(w, h) for w, h in theirs if w * h <= size**2 and min(w, h) * LONGER >= size]
    assert below
    assert [one for one in below if not any(w >= one[0] and h >= one[1] for w, h in ours)] == []


def test_a_size_is_a_multiple_of_the_unit() -> None:
    with pytest.raises(LdmrtError, match="unsupported --size; expected a multiple of 64 with --buckets; found 500"):
        bucket_shapes(500, 64)


@pytest.mark.parametrize(("size", "unit"), CASES)
def test_the_nearest_shape_is_that_of_diffusers_or_nearer(size: int, unit: int) -> None:
    """Theirs is by the difference of areas, ours by the logarithm of the aspect ratio; on exact ratios they agree."""
    shapes = bucket_shapes(size, unit)
    turned = [(h, w) for w, h in shapes]
    ratio = {width / height for width, height in shapes}
    assert len(ratio) == len(shapes)
    for width, height in shapes:
        assert nearest(shapes, (3 * width, 3 * height)) == (width, height)
        assert shapes[find_nearest_bucket(3 * height, 3 * width, turned)] == (width, height)
    random, agreed = np.random.default_rng(0), 0
    for width, height in random.integers(size // 2, 3 * size, (200, 2)).tolist():
        ours, theirs = nearest(shapes, (width, height)), shapes[find_nearest_bucket(height, width, turned)]
        agreed += ours == theirs
        off = [abs(math.log(w / h) - math.log(width / height)) for w, h in (ours, theirs)]
        assert off[0] <= off[1] + 1e-12  # roundings of logarithms below 2
    assert agreed > 140  # of 200: the two differ only between shapes


@pytest.mark.parametrize("batch", [1, 2, 4, 100])
def test_an_epoch_has_each_image_once_in_batches_of_one_shape(batch: int, data: BucketedImages) -> None:
    orders, sizes = [], Counter[int]()
    for epoch in range(3):
        seen: list[str] = []
        for step in range(epoch * steps_of(data, batch), (epoch + 1) * steps_of(data, batch)):
            samples = [data.draw(7, index) for index in data.indices(7, step, batch)]
            assert len({sample.image.shape for sample in samples}) == 1
            sizes[len(samples)] += 1
            seen += [str(sample.key[0]) for sample in samples]
        assert sorted(seen) == sorted(f"{i}.png" for i in range(COUNT))
        orders.append(seen)
    assert orders[0] != orders[1] != orders[2]
    assert max(sizes) <= batch
    full = sum(len(rows) // batch for _, rows in data.groups)
    assert sizes[batch] == 3 * full


def test_samples_keep_their_random_numbers_in_batches_of_another_size(data: BucketedImages) -> None:
    """Which image has which place of the stream does not depend on the batch."""
    streams = []
    for batch in (1, 3, 8):
        steps = range(2 * steps_of(data, batch))
        indices = [index for step in steps for index in data.indices(1, step, batch)]
        assert sorted(indices) == list(range(2 * COUNT))
        streams.append({index: data.draw(1, index).key for index in indices})
    assert streams[0] == streams[1] == streams[2]


def test_images_are_scaled_to_cover_their_shape_and_cropped(images: ImageFolder, data: BucketedImages) -> None:
    for index in range(COUNT):
        sample = data.draw(0, index)
        path = images.folder / str(sample.key[0])
        with Image.open(path) as opened:
            shape = nearest(bucket_shapes(SIZE, UNIT), opened.size)
            sizes = sample.sizes
            assert sizes is not None
            assert sizes.original == (opened.height, opened.width)
            assert sizes.target == (shape[1], shape[0]) == sample.image.shape[:2]
            # the other order: scale first, then crop, as diffusers' script of SDXL does
            scale = max(shape[0] / opened.width, shape[1] / opened.height)
            scaled = opened.resize([round(side * scale) for side in opened.size], Image.Resampling.LANCZOS)
            top, left = sizes.crop
            box = (left, top, left + shape[0], top + shape[1])
        assert (scaled.width - shape[0]) // 2 == left
        assert (scaled.height - shape[1]) // 2 == top
        assert min(box[0], box[1], scaled.width - box[2], scaled.height - box[3]) == 0  # the shape is covered
        if opened.size in ((32, 32), (144, 72)):  # no pixel is cut; Lanczos reaches three pixels beyond the crop
            assert np.abs(np.asarray(scaled.crop(box)).astype(int) - sample.image)[:, 3:-3].max() <= 1


@pytest.mark.parametrize("size", [(40, 48), (48, 40), (33, 33), (801, 799)])
def test_a_square_is_a_shape_like_others(size: Shape, tmp_path: Path) -> None:
    """The slow way: the centre, cropped by hand."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    square = Image.fromarray(pixels[top : top + side, left : left + side]).resize((32, 32), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(fitted(tmp_path / "a.png", (32, 32)), np.asarray(square))


def test_sizes_of_squares_are_known_where_images_were_checked(images: ImageFolder) -> None:
    assert replace(images, shapes={}).draw(0, 0).sizes is None
    for i in range(COUNT):
        sample = images.draw(0, i)
        assert sample.sizes == sizes_of(images.shapes[str(sample.key[0])], (SIZE, SIZE))
    assert sizes_of((200, 100), (50, 50)).crop == (0, 25)  # scaled to 100 x 50


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_of_a_photograph_is_that_of_the_upright_image(orientation: int, tmp_path: Path) -> None:
    """Also where it is decoded at a fraction of its size."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (640, 400)).save(tmp_path / "a.jpg", exif=exif)
    (verdict,) = check_images(tmp_path, ["a.jpg"], 32)
    assert verdict.shape == ((400, 640) if orientation > 4 else (640, 400))


def test_an_image_is_small_for_its_own_shape(tmp_path: Path) -> None:
    Image.new("RGB", (64, 15)).save(tmp_path / "wide.png")
    shapes = bucket_shapes(32, 8)
    (square,), (shaped,) = (check_images(tmp_path, ["wide.png"], 32, each) for each in ((), shapes))
    assert square.small
    assert not shaped.small  # 64 x 16


def test_an_unreadable_image_is_replaced_by_one_of_its_shape(data: BucketedImages) -> None:
    lost = data.groups[0][1][0]
    (data.images.folder / f"{lost}.png").write_bytes(b"")
    batches = Batches(data, 3, 4, skip_unreadable=True)
    whole = [batches(step) for step in range(steps_of(data, 4))]
    assert set(batches.skipped) == {(f"{lost}.png",)}
    for samples in whole:
        assert len({sample.image.shape for sample in samples}) == 1
    assert sorted(sample.index for samples in whole for sample in samples) == list(range(COUNT))


def brightness(samples: list[Sample]) -> Tensor:
    return torch.stack([to_tensor([sample.image], "cpu").double().mean() for sample in samples])


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))


def task_of(module: Scale, data: BucketedImages, seen: list[list[str]]) -> TrainingTask:
    def loss_of(samples: list[Sample], draws: Draws) -> Losses:
        seen.append([sample.caption for sample in samples])
        noise = draws.uniform("noise").double()
        return {"error": (module.weight * brightness(samples) - noise).square()}

    return TrainingTask(data, loss_of)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_a_resumed_run_takes_the_same_steps(accumulate: int, data: BucketedImages, tmp_path: Path) -> None:
    settings = Settings(steps=6, batch=4, learning_rate=0.1, warmup=1, accumulate=accumulate)
    whole = Run(Scale(), settings)
    list(whole.optimise(task_of(whole.module, data, [])))
    half = Run(Scale(), settings)
    for _ in zip(range(3), half.optimise(task_of(half.module, data, [])), strict=False):
        pass
    half.save(tmp_path / "state")
    rest = Run(Scale(), settings)
    rest.resume(tmp_path / "state")
    assert rest.step == 3
    list(rest.optimise(task_of(rest.module, data, [])))
    assert torch.equal(rest.module.weight, whole.module.weight)
    assert torch.equal(rest.average["weight"], whole.average["weight"])
    moments = [list(run.optimizer.state_dict()["state"][0].values()) for run in (rest, whole)]
    assert all(map(torch.equal, *moments))


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_the_loss_of_a_smaller_batch_is_the_mean_over_its_samples(accumulate: int, data: BucketedImages) -> None:
    settings = Settings(
        steps=steps_of(data, 3), batch=3, learning_rate=1.0, warmup=0, optimizer="sgd", accumulate=accumulate
    )
    run, counts = Run(Scale(), settings), Counter[int]()
    before = run.module.weight.item()
    for progress in run.optimise(task_of(run.module, data, [])):
        indices = data.indices(0, progress.step - 1, 3)
        noise = Draws(0, indices).uniform("noise").double()
        bright = brightness([data.draw(0, index) for index in indices])
        expected = (before * bright - noise).square().mean().item()
        slope = abs(2 * ((before * bright - noise) * bright).mean().item())
        assert progress.loss == pytest.approx(expected, rel=1e-12)  # a few roundings in float64
        assert progress.gradient == pytest.approx(slope, rel=1e-9)  # and the sum cancels
        counts[len(indices)] += 1
        before = run.module.weight.item()
    assert len(counts) > 1


def test_held_out_images_are_each_measured_once(images: ImageFolder) -> None:
    _, half = split(images, 0.5)
    held, run, seen = BucketedImages.of(half, bucket_shapes(SIZE, UNIT)), Run(Scale(), SETTINGS), list[list[str]]()
    losses = validation_losses(run, task_of(run.module, held, seen), held)
    assert sorted(caption for part in seen for caption in part) == sorted(row.text for row in half.rows)
    assert validation_losses(run, task_of(run.module, held, []), held) == losses


SETTINGS = Settings(steps=1, batch=3, learning_rate=0.1)


def test_another_shape_or_caption_is_other_data(images: ImageFolder, data: BucketedImages) -> None:
    others = [
        BucketedImages.of(images, bucket_shapes(SIZE, 16)),
        BucketedImages.of(replace(images, skipped=frozenset({"3.png"})), bucket_shapes(SIZE, UNIT)),
        BucketedImages.of(replace(images, rows=images.rows[1:]), bucket_shapes(SIZE, UNIT)),
    ]
    assert len({data.digest, images.digest, *(other.digest for other in others)}) == 5
    assert len(others[1]) == COUNT - 1


def test_ranks_of_two_processes_read_the_stream_without_overlap(data: BucketedImages, images: ImageFolder) -> None:
    """Each takes every other sample of a batch: together they have what one process has."""
    for stream in (data, images):
        for step in range(7):
            indices = data.indices(5, step, 4) if stream is data else range(4 * step, 4 * step + 4)
            ranks = [[stream.draw(5, index).key for index in indices[rank::2]] for rank in range(2)]
            alone = [sample.key for sample in Batches(stream, 5, 4)(step)]
            assert not set(ranks[0]) & set(ranks[1])
            assert sorted(ranks[0] + ranks[1]) == sorted(alone)


def test_shapes_are_from_the_tallest_to_the_widest() -> None:
    assert all(one[0] < other[0] and one[1] > other[1] for one, other in pairwise(bucket_shapes(1024, 64)))
