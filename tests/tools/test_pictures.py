"""Grids, and PNG files that are whole or not there."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime import write_atomically
from ldmrt.tools.pictures import grid, save_png


def pictures(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 255, (n, 4, 6, 3), dtype=np.uint8)  # 255 is the gap's alone


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (4, 2), (5, 3), (3, 5)])
def test_grid_holds_every_picture_in_its_place(n: int, columns: int) -> None:
    given = pictures(n)
    sheet = grid(given, columns, gap=2)
    rows = -(-n // columns)
    assert sheet.shape == (rows * 6 - 2, columns * 8 - 2, 3)
    for i, picture in enumerate(given):
        top, left = i // columns * 6, i % columns * 8
        np.testing.assert_array_equal(sheet[top : top + 4, left : left + 6], picture)
        sheet[top : top + 4, left : left + 6] = 255
    assert (sheet == 255).all()


def test_grid_without_gap() -> None:
    given = pictures(4)
    np.testing.assert_array_equal(grid(given, 4, gap=0), np.concatenate(list(given), axis=1))


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
