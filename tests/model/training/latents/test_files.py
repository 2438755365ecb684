"""Latents on the disk: the same bits as without, read again by later runs, and never half a shard."""

import os
import resource
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldmrt.model import Autoencoder, AutoencoderConfig
from ldmrt.model.training.data.buckets import BucketedImages
from ldmrt.model.training.data.captioned import ImageFolder, Sample, Sizes
from ldmrt.model.training.latent_files import LatentFiles
from ldmrt.model.training.latents import LatentCache
from ldmrt.runtime import LdmrtWarning

TENSORS = {f"{i:02}": torch.full((4, 2), float(i)) for i in range(10)}  # 32 bytes each


@pytest.fixture
def images(tmp_path: Path) -> ImageFolder:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return ImageFolder.open(folder, size=8, prompt="a picture")


class Counted(Autoencoder):
    """Counts how many images it has encoded."""

    encoded = 0

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        self.encoded += len(image)
        return super().encode(image)


def autoencoder() -> Counted:
    torch.manual_seed(0)
    types = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    return Counted(AutoencoderConfig(3, 3, *types, (8, 8), 1, norm_num_groups=4)).eval()


def on_disk(images: Any, folder: Path, **more: Any) -> LatentCache:
    files = LatentFiles(folder, "kind")
    return LatentCache(autoencoder(), "cpu", files=files, fingerprint=images.fingerprint, **more)


def test_a_second_epoch_and_a_second_run_neither_encode_nor_decode(
    images: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [images.draw(0, i) for i in range(3)]
    expected = LatentCache(autoencoder(), "cpu", entries=0)(samples)
    first = on_disk(images, tmp_path / "latents")
    assert all(map(first.lacks, samples))
    assert torch.equal(first(samples), expected)
    assert first.vae.encoded == 3  # type: ignore[attr-defined]
    first.files.write()  # type: ignore[union-attr]

    def decoded(*args: Any) -> Any:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr("ldmrt.model.training.data.captioned.fitted", decoded)
    for cache in (first, on_disk(images, tmp_path / "latents")):
        encoded = cache.vae.encoded  # type: ignore[attr-defined]
        again = [images.draw(0, i) for i in (5, 3, 4, 5)]
        assert not any(map(cache.lacks, again))
        found = dict(zip((sample.key for sample in again), cache(again), strict=True))
        assert all(torch.equal(found[sample.key], expected[i]) for i, sample in enumerate(samples))
        assert cache.vae.encoded == encoded  # type: ignore[attr-defined]


def test_another_image_under_the_same_name_is_encoded(images: ImageFolder, tmp_path: Path) -> None:
    sample = images.draw(0, 0)
    first = on_disk(images, tmp_path / "latents")
    before = first([sample])
    first.files.write()  # type: ignore[union-attr]
    Image.new("RGB", (8, 8), "red").save(images.folder / str(sample.key[0]))
    cache = on_disk(images, tmp_path / "latents")
    assert cache.lacks(images.draw(0, 0))
    assert not torch.equal(cache([images.draw(0, 0)]), before)


def test_a_fingerprint_is_of_bytes_shape_and_view(images: ImageFolder) -> None:
    sample = replace(images.draw(0, 0), sizes=Sizes((8, 8), (0, 0), (8, 8)))
    name = str(sample.key[0])
    (images.folder / "copy.png").write_bytes((images.folder / name).read_bytes())
    same = images.fingerprint(sample)
    assert images.fingerprint(replace(sample, key=("copy.png",))) == same
    assert images.fingerprint(replace(sample, sizes=None)) == same  # of the folder's own size
    assert BucketedImages(images, ()).fingerprint(sample) == same
    others = [
        replace(sample, key=(name, "mirrored")),
        replace(sample, key=("1.png" if name == "0.png" else "0.png",)),
        replace(sample, sizes=Sizes((8, 8), (0, 0), (4, 8))),
    ]
    assert len({same, *map(images.fingerprint, others)}) == 4


def test_what_hardly_comes_again_is_not_kept(images: ImageFolder, tmp_path: Path) -> None:
    cache = on_disk(images, tmp_path / "latents")
    sample = replace(images.draw(0, 0), once=True)
    assert cache.lacks(sample)
    cache([sample])
    assert not cache.files.waiting  # type: ignore[union-attr]
    assert not cache._names  # nor is its file read once more for a name


def test_an_unreadable_file_is_left_to_its_decoding(images: ImageFolder, tmp_path: Path) -> None:
    sample = images.draw(0, 0)
    (images.folder / str(sample.key[0])).unlink()
    assert on_disk(images, tmp_path / "latents").lacks(sample)


@pytest.mark.parametrize("kept", [True, False])
def test_rounded_moments_are_the_same_each_time(images: ImageFolder, tmp_path: Path, kept: bool) -> None:
    samples = [images.draw(0, i) for i in range(3)]
    expected = LatentCache(autoencoder(), "cpu")(samples)
    cache = LatentCache(autoencoder(), "cpu", dtype=torch.float16)
    cache = on_disk(images, tmp_path / "latents", dtype=torch.float16) if kept else cache
    rounded = cache(samples)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, expected.half().float())
    assert not torch.equal(rounded, expected)
    if cache.files is not None:
        cache.files.write()
        cache.files.waiting.clear()
    assert torch.equal(cache(samples), rounded)


def test_shards_are_of_limited_size_and_hold_all(tmp_path: Path) -> None:
    files = LatentFiles(tmp_path, "kind", shard=100)
    for name, tensor in TENSORS.items():
        files.add(name, tensor)
    assert len(files.waiting) == 1
    files.write()
    assert len(list(tmp_path.iterdir())) == 4  # of three tensors, and of one
    other = LatentFiles(tmp_path, "kind")
    for name, tensor in reversed(TENSORS.items()):
        assert name in other
        assert torch.equal(other.get(name), tensor)  # type: ignore[arg-type]
    assert not other.waiting
    assert "00" not in LatentFiles(tmp_path, "other")
    assert LatentFiles(tmp_path, "kind").get("10") is None


def test_a_killed_process_leaves_no_shard(tmp_path: Path) -> None:
    files = LatentFiles(tmp_path, "kind")
    files.add("00", TENSORS["00"])
    if (child := os.fork()) == 0:
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        files.write()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert list(tmp_path.iterdir())  # what it has written so far
    assert "00" not in LatentFiles(tmp_path, "kind")
    files.write()
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def without_sums(path: Path) -> None:
    from safetensors.torch import save_file

    save_file(TENSORS, path)


@pytest.mark.parametrize("damage", [cut, flip, without_sums, lambda path: path.write_bytes(b"")])
def test_damaged_latents_are_computed_again(damage: Any, images: ImageFolder, tmp_path: Path) -> None:
    samples, folder = [images.draw(0, i) for i in range(3)], tmp_path / "latents"
    cache = on_disk(images, folder)
    expected = cache(samples)
    cache.files.write()  # type: ignore[union-attr]
    (shard,) = folder.iterdir()
    damage(shard)

    def opened() -> LatentCache:
        cache = on_disk(images, folder)
        assert torch.equal(cache([images.draw(0, i) for i in range(3)]), expected)
        return cache

    with pytest.warns(LdmrtWarning, match="computed again"):
        cache = opened()
    assert cache.vae.encoded >= 1  # type: ignore[attr-defined]
    cache.files.write()  # type: ignore[union-attr]
    again = on_disk(images, folder)
    assert torch.equal(again(samples), expected)
    assert again.vae.encoded == 0  # type: ignore[attr-defined]


def test_a_full_disk_is_a_warning_and_latents_stay_in_memory(tmp_path: Path) -> None:
    files = LatentFiles(tmp_path / "latents", "kind", shard=4_000_000)
    tensors = {f"{i}": torch.full((1_000_000,), float(i)) for i in range(3)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def add_all() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            for name, tensor in tensors.items():
                files.add(name, tensor)
            files.write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    said = r"cannot be kept in .*: 4\.0 MB needed, \d+\.\d MB free; .* in memory"
    with pytest.warns(LdmrtWarning, match=said) as warned:
        add_all()
    assert len(warned) == 1
    assert list((tmp_path / "latents").iterdir()) == []
    assert all(torch.equal(files.get(name), tensor) for name, tensor in tensors.items())  # type: ignore[arg-type]


def test_a_sample_of_no_files_is_known_by_its_key() -> None:
    cache, sample = LatentCache(autoencoder(), "cpu"), Sample(np.zeros((8, 8, 3), np.uint8), "", ("a",))
    assert cache.lacks(sample)
    cache([sample])
    assert not cache.lacks(sample)
