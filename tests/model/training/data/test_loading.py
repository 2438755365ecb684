"""The batches of a stream: decoded ahead, and only what has to be."""

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from ldmrt.model import Autoencoder, AutoencoderConfig
from ldmrt.model.training.data import captioned
from ldmrt.model.training.data.batches import Batches
from ldmrt.model.training.data.captioned import ImageFolder
from ldmrt.model.training.data.metadata import Row, read_metadata
from ldmrt.model.training.latents import LatentCache
from ldmrt.runtime import LdmrtError

COUNT = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images, each of one grey."""
    rows = []
    for i in range(COUNT):
        Image.new("L", (8, 8), 40 * i).save(tmp_path / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": f"image {i}"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    return tmp_path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was decoded."""
    times, fitted = Counter[str](), captioned.fitted
    monkeypatch.setattr(captioned, "fitted", lambda path, *more: times.update([path.name]) or fitted(path, *more))
    return times


def rows_of(folder: Path) -> tuple[Row, ...]:
    return tuple(read_metadata(folder / "metadata.jsonl")[0])


def batches(folder: Path, size: int = 4, **options: object) -> Batches:
    return Batches(ImageFolder.open(folder, size=8), 5, size, **options)  # type: ignore[arg-type]


def names(loaded: Batches, steps: int, first: int = 0) -> list[str]:
    """Names by the pixels, which must be those of the caption."""
    found = []
    for step in range(first, first + steps):
        samples = loaded(step)
        loaded.prepare(step + 1)
        for sample in samples:
            assert sample.image[0, 0, 0] == 40 * int(sample.caption[-1])
            found.append(str(sample.key[0]))
    return found


def test_every_epoch_holds_every_image_whatever_the_batch(folder: Path) -> None:
    found = names(batches(folder), 9)
    for epoch in range(6):
        assert sorted(found[epoch * COUNT :][:COUNT]) == [f"{i}.png" for i in range(COUNT)]
    assert found == names(batches(folder, 12), 3) == names(batches(folder, 1), 36)
    assert found[4 * 4 :] == names(batches(folder), 5, first=4)


def test_images_are_decoded_until_their_latents_are_known(folder: Path, decoded: Counter[str]) -> None:
    config = AutoencoderConfig(3, 3, ("DownEncoderBlock2D",), ("UpDecoderBlock2D",), (4,), 1, norm_num_groups=2)
    cache = LatentCache(Autoencoder(config).eval(), "cpu")
    loaded = batches(folder, wanted=cache.lacks)
    for step in range(9):
        cache(loaded(step))
        loaded.prepare(step + 1)
    assert decoded == {f"{i}.png": 1 for i in range(COUNT)}
    assert len(cache.known) == COUNT


def test_an_image_that_comes_twice_in_a_batch_is_decoded_once(folder: Path, decoded: Counter[str]) -> None:
    batches(folder, 4 * COUNT)(0)
    assert set(decoded.values()) == {1}


def test_an_unreadable_image_stops_the_run_by_name(folder: Path) -> None:
    loaded = batches(folder, COUNT)
    (folder / "3.png").write_bytes(b"")
    with pytest.raises(LdmrtError, match=r"cannot read .*3\.png") as caught:
        loaded(0)
    assert "--on-bad skip" in str(caught.value)


def test_the_next_of_the_stream_takes_the_place_of_an_unreadable_image(folder: Path) -> None:
    whole = names(batches(folder), 9)
    before = batches(folder, skip_unreadable=True)
    (folder / "3.png").unlink()
    (folder / "1.png").write_bytes(b"no image")
    after = names(before, 9)
    expected = list(whole)
    for i in reversed(range(len(whole) - 1)):
        if whole[i] in ("1.png", "3.png"):
            expected[i] = expected[i + 1]
    assert after[:-1] == expected[:-1]
    assert sorted(before.skipped) == [("1.png",), ("3.png",)]
    assert "3.png" in before.skipped["3.png",]
    # known from the start, they are skipped in the same way: so a resumed run takes the same steps
    known = ImageFolder(folder, rows_of(folder), 8, frozenset({"1.png", "3.png"}))
    assert names(Batches(known, 5, 4), 9) == after
    assert [known.caption(5, i)[-1] for i in range(36)] == [name[0] for name in after]


def test_nothing_but_unreadable_images_ends(folder: Path) -> None:
    loaded = batches(folder, skip_unreadable=True)
    for path in folder.glob("*.png"):
        path.unlink()
    with pytest.raises(LdmrtError, match="missing file"):
        loaded(0)


def test_a_folder_of_skipped_images_is_refused(folder: Path) -> None:
    rows = rows_of(folder)
    with pytest.raises(LdmrtError, match="names no image that can be used"):
        ImageFolder(folder, rows, 8, frozenset(row.file_name for row in rows))
    assert len(ImageFolder(folder, rows, 8, frozenset({"1.png"}))) == COUNT - 1
