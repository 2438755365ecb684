"""The stream of regularisation images: its own order, whatever the batch, in the shapes of the training's images."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmrt.model import Autoencoder, AutoencoderConfig
from ldmrt.model.training.data import captioned
from ldmrt.model.training.data.augmentation import Augmentation
from ldmrt.model.training.data.batches import Batches
from ldmrt.model.training.data.buckets import BucketedImages, bucket_shapes
from ldmrt.model.training.data.captioned import ImageFolder, Sample, name_of
from ldmrt.model.training.data.regularisation import Regularisation, fingerprints
from ldmrt.model.training.latents import LatentCache
from ldmrt.runtime import LdmrtError

COUNT = 6


def greys(folder: Path, first: int, shapes: list[tuple[int, int]]) -> ImageFolder:
    """Images of one grey each, whose captions say which."""
    folder.mkdir()
    for i, shape in enumerate(shapes):
        Image.new("L", shape, first + 20 * i).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{first + 20 * i}")
    known = {f"{i}.png": shape for i, shape in enumerate(shapes)}
    return replace(ImageFolder.open(folder, size=8), shapes=known)


@pytest.fixture
def data(tmp_path: Path) -> ImageFolder:
    return greys(tmp_path / "own", 10, [(8, 8)] * COUNT)


@pytest.fixture
def others(tmp_path: Path) -> Regularisation:
    return Regularisation(greys(tmp_path / "others", 15, [(9, 12)] * COUNT))


def beside(sample: Sample) -> Sample:
    assert sample.regularisation is not None
    return sample.regularisation


def streamed(data: ImageFolder, others: Regularisation | None, batch: int, samples: int = 24) -> list[Sample]:
    loaded = Batches(data, 5, batch, regularisation=others)
    return [sample for step in range(samples // batch) for sample in loaded(step)]


def test_each_sample_has_the_same_image_beside_it_in_any_batch(data: ImageFolder, others: Regularisation) -> None:
    whole, alone = streamed(data, others, 8), streamed(data, None, 8)
    assert [name_of(sample) for sample in alone] == [name_of(replace(one, regularisation=None)) for one in whole]
    names = [beside(sample).caption for sample in whole]
    for batch in (1, 3, 4):
        assert [beside(sample).caption for sample in streamed(data, others, batch)] == names
    assert [beside(sample).caption for sample in Batches(data, 5, 8, regularisation=others)(2)] == names[16:]  # resumed
    half = Batches(data, 5, 8, regularisation=others, taken=slice(1, None, 2))  # of two processes
    assert [beside(sample).caption for sample in half(0)] == names[1:8:2]
    for sample in whole:
        assert (sample.image == int(sample.caption)).all()
        assert (beside(sample).image == int(beside(sample).caption)).all()


def test_every_epoch_has_each_image_once_in_an_order_of_its_own(data: ImageFolder, others: Regularisation) -> None:
    whole = streamed(data, others, 6)
    orders = [[beside(sample).key[2] for sample in whole[begin : begin + 6]] for begin in range(0, 24, 6)]
    assert [sorted(order) for order in orders] == [[f"{i}.png" for i in range(COUNT)]] * 4
    assert len(set(map(tuple, orders))) == 4
    assert [sample.key[0] for sample in whole] != [beside(sample).key[2] for sample in whole]


def test_images_have_the_shape_of_those_that_they_are_beside(tmp_path: Path, others: Regularisation) -> None:
    shapes = bucket_shapes(8, 2)
    sizes = [(8, 8), (16, 4), (4, 16), (16, 4), (8, 8)]
    data = BucketedImages.of(greys(tmp_path / "shaped", 10, sizes), shapes)
    loaded, found = Batches(data, 5, 2, regularisation=others), set()
    for step in range(12):
        samples = loaded(step)
        assert len({one.image.shape for sample in samples for one in (sample, beside(sample))}) == 1
        for sample in samples:
            other = beside(sample)
            assert other.sizes is not None
            assert (other.sizes.original, *other.sizes.target) == ((12, 9), *other.image.shape[:2])
            found.add((other.key[1], other.image.shape))
    assert {name for name, _ in found} == {"8x8", "16x4", "4x16"}
    assert len(found) == 3  # latents of one key have one shape


@pytest.mark.parametrize("where", ["own", "others"])
def test_an_unreadable_image_is_followed_by_the_next_of_its_stream(
    where: str, data: ImageFolder, others: Regularisation, tmp_path: Path
) -> None:
    whole = streamed(data, others, 4)
    lost = whole[5] if where == "own" else beside(whole[5])
    (tmp_path / where / str(lost.key[-1])).write_bytes(b"no image")
    with pytest.raises(LdmrtError, match=str(lost.key[-1])):
        streamed(data, others, 4)
    loaded = Batches(data, 5, 4, skip_unreadable=True, regularisation=others)
    found = [sample for step in range(6) for sample in loaded(step)]
    assert set(loaded.skipped) == {lost.key}
    assert [sample.index for sample in found] == list(range(24))
    streams = [list(whole), [beside(sample) for sample in whole]]
    taken = [list(found), [beside(sample) for sample in found]]
    if where == "others":
        streams, taken = streams[::-1], taken[::-1]
    for before, now in zip(streams[1], taken[1], strict=True):  # the stream without damage
        assert before.caption == now.caption
    for place, (before, now) in enumerate(zip(streams[0][:-1], taken[0][:-1], strict=True)):
        expected = before if before.key != lost.key else streams[0][place + 1]
        assert now.caption == expected.caption
        assert (now.image == int(now.caption)).all()


def test_images_are_decoded_for_latents_that_are_not_kept_alone(
    data: ImageFolder, others: Regularisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of one name in both folders have latents of their own, each computed once."""
    times, fitted = Counter[Path](), captioned.fitted
    monkeypatch.setattr(captioned, "fitted", lambda path, *more: times.update([path]) or fitted(path, *more))
    config = AutoencoderConfig(block_out_channels=(2,), layers_per_block=1, norm_num_groups=1, latent_channels=1)
    cache = LatentCache(Autoencoder(config), "cpu")
    loaded = Batches(data, 5, 4, wanted=cache.lacks, regularisation=others)
    for step in range(9):
        samples = loaded(step)
        cache([*samples, *map(beside, samples)])
    assert len(times) == len(cache.known) == 2 * COUNT
    assert set(times.values()) == {1}


def test_one_file_in_both_has_one_fingerprint(data: ImageFolder, tmp_path: Path) -> None:
    """So that latents on the disk are shared; another shape or view has another."""
    same = Regularisation(replace(data, augmentation=Augmentation(flip=True)))
    own = data.draw(5, 0)
    every = {one.key: one for one in (same.beside(own, 5, i) for i in range(64))}
    assert {key[2:] for key in every} == {(f"{i}.png", *view) for i in range(COUNT) for view in ((), ("mirrored",))}
    hashed = fingerprints(data, same)
    for sample in every.values():
        name, *view = sample.key[2:]
        plain = hashed(replace(sample, key=(name,)))
        assert plain == data.fingerprint(replace(own, key=(name,)))
        assert (hashed(sample) == plain) is (not view)
    assert len({hashed(sample) for sample in every.values()}) == 2 * COUNT


def test_a_sample_is_named_with_the_image_beside_it(data: ImageFolder, others: Regularisation) -> None:
    (sample,) = Batches(data, 5, 1, regularisation=others)(0)
    assert name_of(sample) == f"{sample.key[0]} beside regularisation 8x8 {beside(sample).key[2]}"
    assert np.array_equal(sample.image, data.draw(5, 0).image)
