"""Grids, and PNG files that are whole or not there."""

import multiprocessing
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime import LdmrtError, LdmrtWarning
from ldmrt.runtime.files.writing import write_atomically
from ldmrt.tools.console.drawing.image_paths import free_path, numbered
from ldmrt.tools.console.drawing.images import GAP, LONGEST, grid, save_image, save_png


def pictures(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 255, (n, 4, 6, 3), dtype=np.uint8)  # 255 is the gap's alone


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (4, 2), (5, 3), (3, 5)])
def test_grid_holds_every_picture_in_its_place(n: int, columns: int) -> None:
    given = pictures(n)
    sheet = grid(given, columns)
    rows = -(-n // columns)
    assert sheet.shape == (rows * (4 + GAP) - GAP, columns * (6 + GAP) - GAP, 3)
    for i, picture in enumerate(given):
        top, left = i // columns * (4 + GAP), i % columns * (6 + GAP)
        np.testing.assert_array_equal(sheet[top : top + 4, left : left + 6], picture)
        sheet[top : top + 4, left : left + 6] = 255
    assert (sheet == 255).all()


def test_notes_come_back(tmp_path: Path) -> None:
    (given,) = pictures(1)
    notes = {"ldmrt": '{"prompt": "a \u201cred\u201d \U0001f34e, caf\u00e9"}', "number": 3}
    save_png(tmp_path / "new" / "a.png", given, notes)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.text == {"ldmrt": notes["ldmrt"], "number": "3"}
        np.testing.assert_array_equal(np.asarray(image), given)
    save_png(tmp_path / "b.png", given)
    with Image.open(tmp_path / "b.png") as image:
        assert image.text == {}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_write_that_fails_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.bin"
    with write_atomically(path) as file:
        file.write(b"old")

    def fail() -> None:
        with write_atomically(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with write_atomically(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"  # until the block ends
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644


def exif(path: Path) -> dict[str, str]:
    """The parameters of a JPEG or WebP: AUTOMATIC1111's in the user comment, ours in the maker note."""
    with Image.open(path) as image:
        tags = image.getexif().get_ifd(0x8769)
    code, note = tags[0x9286][:8], tags[0x927C]
    assert (code, note[:6]) == (b"UNICODE\0", b"ldmrt\0")
    return {"parameters": str(tags[0x9286][8:], "utf-16-be"), "ldmrt": str(note[6:], "utf-8")}


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPG", "webp"])
@pytest.mark.parametrize("text", ['{"prompt": "a cat"}', '{"prompt": "caf\u00e9 \U0001f34e"}'])
def test_notes_are_in_the_exif_of_other_formats(suffix: str, text: str, tmp_path: Path) -> None:
    image = np.kron(np.arange(0, 250, 10, dtype=np.uint8).reshape(5, 5, 1), np.ones((8, 8, 3), np.uint8))
    path = tmp_path / f"a.{suffix}"
    notes = {"parameters": f"a cat\n{text}", "ldmrt": text}
    save_image(path, image, notes)
    assert exif(path) == notes
    with Image.open(path) as opened:
        assert opened.format == ("WEBP" if suffix == "webp" else "JPEG")
        assert np.abs(np.asarray(opened).astype(int) - image).max() <= (0 if suffix == "webp" else 4)  # JPEG is lossy
        save_image(path, image)
    with Image.open(path) as opened:
        assert 0x8769 not in opened.getexif()


def test_notes_that_are_too_long_for_a_jpeg_are_left_out_with_a_warning(tmp_path: Path) -> None:
    (image,) = pictures(1)
    for length, fits in ((65000, True), (70000, False)):
        notes = {"parameters": "y" * 10, "ldmrt": "x" * length}
        if fits:
            save_image(tmp_path / "a.jpg", image, notes)
            assert exif(tmp_path / "a.jpg") == notes
            continue
        with pytest.warns(LdmrtWarning, match=r"a\.jpg: parameters of more than 64 KiB"):
            save_image(tmp_path / "a.jpg", image, notes)
        save_image(tmp_path / "a.webp", image, notes)
        assert exif(tmp_path / "a.webp") == notes


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_an_image_larger_than_its_format_is_refused(suffix: str, tmp_path: Path) -> None:
    side = LONGEST["WEBP" if suffix == "webp" else "JPEG"] + 1
    with pytest.raises(LdmrtError, match="is too large for"):
        save_image(tmp_path / f"a.{suffix}", np.zeros((1, side, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def given_path(*arguments: Any, **options: Any) -> Path:
    with free_path(*arguments, **options) as path:
        return path


@pytest.mark.parametrize(
    ("there", "count", "steps", "expected"),
    [
        ([], 1, False, "a.jpg"),
        (["a.png", "a-00.jpg", "a-steps"], 1, False, "a.jpg"),
        (["a.jpg"], 1, False, "a_2.jpg"),
        (["a.jpg", "a_2.jpg", "a_4.jpg"], 1, False, "a_3.jpg"),
        (["a-01.jpg"], 2, False, "a_2.jpg"),
        (["a.jpg", "a_2-00.jpg"], 2, False, "a_3.jpg"),
        (["a-steps"], 1, True, "a_2.jpg"),
        (["a-steps.jpg"], 1, True, "a_2.jpg"),
    ],
)
def test_files_that_are_there_are_kept(
    there: list[str], count: int, steps: bool, expected: str, tmp_path: Path
) -> None:
    for name in there:
        (tmp_path / name).mkdir() if name.endswith("-steps") else (tmp_path / name).touch()
    out = tmp_path / "a.jpg"
    if expected == out.name:
        assert given_path(out, count, steps=steps, overwrite=False) == out
    else:
        with pytest.warns(LdmrtWarning, match=f"{expected} is written; --overwrite replaces it"):
            assert given_path(out, count, steps=steps, overwrite=False) == tmp_path / expected
    assert given_path(out, count, steps=steps, overwrite=True) == out


@pytest.mark.parametrize(
    ("name", "count", "folder", "words"),
    [
        ("a.png", 2, "a-01.png", "a folder of that name"),
        ("a.png", 1, "a.npy", "a folder of that name"),
        ("a.png", 1, "a-steps.png", "a folder of that name"),
        (f"{'a' * 249}.png", 2, "", "file name too long"),
        (f"{'a' * 248}.png", 1, "", "file name too long"),
    ],
)
def test_every_file_is_looked_at_before_drawing(name: str, count: int, folder: str, words: str, tmp_path: Path) -> None:
    if folder:
        (tmp_path / folder).mkdir()
    with pytest.raises(LdmrtError, match=f"cannot be written; found {words}"):
        given_path(tmp_path / name, count, steps=True, overwrite=True, latents=True)


def test_a_billion_images_are_not_looked_for_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "a-123456789.png").touch()
    with pytest.warns(LdmrtWarning, match="a_2"):
        assert given_path(tmp_path / "a.png", 10**9, steps=False, overwrite=False) == tmp_path / "a_2.png"
    assert given_path(tmp_path / "a.png", 10**8, steps=False, overwrite=False) == tmp_path / "a.png"


def test_latents_that_are_there_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    (tmp_path / "a.npy").touch()
    assert given_path(out, 1, steps=False, overwrite=False) == out
    with pytest.warns(LdmrtWarning, match="a_2"):
        assert given_path(out, 1, steps=False, overwrite=False, latents=True) == tmp_path / "a_2.png"


def test_a_link_to_nothing_is_a_file_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "none")
    with pytest.warns(LdmrtWarning, match="a_2"):
        assert given_path(tmp_path / "a.png", 1, steps=False, overwrite=False) == tmp_path / "a_2.png"


@pytest.mark.parametrize("name", ["a.gif", "a", ".png", "a.png.txt", "folder.png"])
def test_names_that_say_no_format(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    message = r"invalid --out; expected a file name that ends in \.png, \.jpg, \.jpeg, \.webp; found"
    for overwrite in (False, True):
        with pytest.raises(LdmrtError, match=message):
            given_path(tmp_path / name, 1, steps=False, overwrite=overwrite)
    assert numbered(tmp_path / "a.jpg", 3) == tmp_path / "a-03.jpg"


def test_two_runs_at_once_are_given_other_names(tmp_path: Path) -> None:
    """Before either has written anything, and whichever of their files are the same."""
    with (
        free_path(tmp_path / "a.png", 1, steps=False, overwrite=False, latents=True) as first,
        pytest.warns(LdmrtWarning, match=r"a\.png exists already, so a_2\.png is written"),
        free_path(tmp_path / "a.png", 3, steps=True, overwrite=False) as second,
        pytest.warns(LdmrtWarning, match=r"a_2\.jpg"),
        free_path(tmp_path / "a.jpg", 1, steps=False, overwrite=False, latents=True) as third,
        free_path(tmp_path / "b.png", 1, steps=False, overwrite=False) as other,
        free_path(tmp_path / "a.png", 1, steps=False, overwrite=True) as same,
    ):
        assert [path.name for path in (first, second, third, other, same)] == [
            "a.png", "a_2.png", "a_2.jpg", "b.png", "a.png",
        ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def draw_nothing(out: Path, ready: Any) -> None:
    ready.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LdmrtWarning)
        with free_path(out, 2, steps=False, overwrite=False) as path:
            for one in (path, numbered(path, 0), numbered(path, 1)):
                with one.open("x") as file:  # fails where it is there
                    file.write(str(os.getpid()))


def test_processes_that_start_together_overwrite_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(4)
    runs = [context.Process(target=draw_nothing, args=(tmp_path / "a.png", ready)) for _ in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0] * 4
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert len(written) == 12
    for stem in ("a", "a_2", "a_3", "a_4"):
        assert len({written[f"{stem}{end}.png"] for end in ("", "-00", "-01")}) == 1
