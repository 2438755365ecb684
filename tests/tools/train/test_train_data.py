"""The data of `ldmrt train`, and `ldmrt data check`: what is refused before the first step, what is skipped, and of
which size all is.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmrt.model.training.loop.states.kept import STATES
from ldmrt.tools.console.training import checks, options
from ldmrt.tools.console.training.data import open_data

from .runs.saved import contents

COUNT = 5


pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of noise, 40 pixels high, with captions."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(COUNT):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return write(folder)


def write(folder: Path, *more: str) -> Path:
    rows = [json.dumps({"file_name": f"{i}.png", "text": f"image {i}"}) for i in range(COUNT)]
    (folder / "metadata.jsonl").write_text("\n".join([*rows, *more]))
    return folder


def words(folder: Path, out: Path, *more: object, steps: int = 1) -> list[object]:
    return ["train", "autoencoder", "--data", folder, "--out", out, "--steps", steps, "--batch", 2, *more]


def test_check_tells_how_many_can_be_used(ldmrt: Any, folder: Path) -> None:
    ran = ldmrt("data", "check", folder)
    assert (ran.code, ran.out) == (0, f"{folder}: 5 captioned images can be used\n")


@pytest.mark.parametrize("command", ["check", "train"])
def test_all_that_is_wrong_is_found_before_the_first_step(
    command: str, ldmrt: Any, folder: Path, tmp_path: Path
) -> None:
    write(folder, "", '{"file_name": "0.png", "text": null}', '{"file_name": "../x.png", "text": "a"}')
    (folder / "1.png").write_bytes(b"")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:-200])
    Image.new("L", (1, 1)).save(folder / "4.png")
    out = tmp_path / "out"
    ran = ldmrt(*(["data", "check", folder] if command == "check" else words(folder, out)))
    assert f"5 lines of {folder / 'metadata.jsonl'} cannot be used" in ran.error
    for line in (
        "line 2: 1.png is empty", "line 4: 3.png cannot be read (image file is truncated",
        "line 5: 4.png is 1 pixels", "line 7: text of 0.png is null", 'line 8: "../x.png" is outside',
    ):  # fmt: skip
        assert f"\n  {line}" in ran.err
    assert "--on-bad skip --on-small skip" in ran.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("replace", "found"),
    [
        (lambda path: path.mkdir(), "expected a regular file; found a folder"),
        (os.mkfifo, "expected a regular file; found a FIFO"),
        (lambda path: path.symlink_to("/dev/zero"), "expected a regular file; found a device"),
        (lambda path: path.symlink_to("nowhere"), "missing file"),
        (lambda path: path.touch() or os.truncate(path, 1 << 40), "too large; expected at most 536870912 bytes"),
    ],
)
def test_what_is_no_list_is_told_so(ldmrt: Any, folder: Path, replace: Callable[[Path], Any], found: str) -> None:
    """Not that there are no emoji; and a file with a terabyte of nothing is not read."""
    (folder / "metadata.jsonl").unlink()
    replace(folder / "metadata.jsonl")
    assert found in ldmrt("data", "check", folder).error


def test_many_are_counted(ldmrt: Any, folder: Path) -> None:
    ran = ldmrt("data", "check", write(folder, *["null"] * 33))
    assert ran.err.count("\n  line ") == 20
    assert "\n  and 13 more" in ran.err


def test_bad_ones_are_skipped_where_asked(ldmrt: Any, folder: Path, tmp_path: Path) -> None:
    write(folder, "null")
    (folder / "1.png").write_bytes(b"")
    Image.new("L", (9, 9)).save(folder / "2.png")
    out = tmp_path / "out"
    assert "line 3: 2.png" in ldmrt(*words(folder, out, "--on-bad", "skip")).error
    assert "2 lines" in ldmrt(*words(folder, out, "--on-small", "skip")).error
    ran = ldmrt(*words(folder, out, "--on-bad", "skip", "--on-small", "skip"))
    assert ran.code == 0, ran.err
    assert "skipped 3 lines" in ran.err
    assert "\n  line 2: 1.png is empty\n" in ran.err
    # a file that is lost between two runs changes neither the order nor what a resumed run is told
    (folder / "3.png").unlink()
    again = ldmrt(
        *words(folder, out, "--on-bad", "skip", "--on-small", "skip", "--resume", "--change", "steps", steps=2)
    )
    assert again.code == 0, again.err
    assert '"3.png" is missing' in again.err


def test_nothing_left_is_one_error(ldmrt: Any, folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.png"):
        path.unlink()
    ran = ldmrt(*words(folder, tmp_path / "out", "--on-bad", "skip"))
    assert "names no image that can be used" in ran.error


def test_an_image_that_is_lost_half_way(ldmrt: Any, folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """The last whole step is saved, and the run goes on without it where asked."""
    from ldmrt.model.training.data import captioned

    decoded, fitted = list[str](), captioned.fitted

    def lost(path: Path, *more: Any) -> Any:
        decoded.append(path.name)
        if len(decoded) == 30:  # of which eight are for the preview, and four at most are ahead of the step
            (folder / "3.png").unlink()
        return fitted(path, *more)

    monkeypatch.setattr(captioned, "fitted", lost)
    asked = words(folder, tmp_path / "out", "--save-every", 100, steps=30)
    ran = ldmrt(*asked)
    assert "3.png" in ran.error
    assert "--on-bad skip" in ran.err
    assert "saved the state of step " in ran.err
    again = ldmrt(*asked, "--resume", "--on-bad", "skip")
    assert again.code == 0, again.err
    assert "30 steps in " in again.err


def test_fewer_images_than_the_batch_are_said(ldmrt: Any, folder: Path, tmp_path: Path) -> None:
    ran = ldmrt(*words(folder, tmp_path / "out", "--batch", 8))
    assert ran.code == 0, ran.err
    assert "5 images for batches of 8: a batch repeats some of them" in ran.err


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 72])
def test_size_is_one_setting(size: int, ldmrt: Any, folder: Path, tmp_path: Path) -> None:
    out, ldm = tmp_path / "out", tmp_path / "ldm"
    assert ldmrt(*words(folder, out, "--size", size)).code == 0
    assert json.loads((out / "vae" / "config.json").read_text())["sample_size"] == size
    with Image.open(out / "training" / "autoencoder-000001.png") as sheet:
        assert sheet.size == (8 * (size + 2) - 2, size)
    # whatever size the autoencoder's config speaks of
    config = json.loads((out / "vae" / "config.json").read_text())
    (out / "vae" / "config.json").write_text(json.dumps(config | {"sample_size": 512}))
    ran = ldmrt("train", "ldm", *words(folder, ldm, "--size", size)[2:], "--autoencoder", out)
    assert ran.code == 0, ran.err
    assert json.loads((ldm / "unet" / "config.json").read_text())["sample_size"] == size // 8
    assert json.loads((ldm / "vae" / "config.json").read_text())["sample_size"] == size
    with Image.open(ldm / "training" / "ldm-000001.png") as sheet:
        assert sheet.size == (4 * (size + 2) - 2, size)


def test_size_has_to_fit_the_autoencoder_and_the_data(ldmrt: Any, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "unsupported --size; expected a multiple of 8" in ldmrt(*words(folder, out, "--size", 60)).error
    assert not out.exists()


def test_a_resumed_run_has_the_data_and_the_size_of_the_saved_one(ldmrt: Any, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert ldmrt(*words(folder, out)).code == 0
    before = contents(out / STATES)
    assert "another --size; expected 64; found 72" in ldmrt(*words(folder, out, "--resume", "--size", 72)).error
    (folder / "metadata.jsonl").write_text((folder / "metadata.jsonl").read_text().replace("image 3", "another"))
    assert "another --data" in ldmrt(*words(folder, out, "--resume")).error
    assert contents(out / STATES) == before
    write(folder)
    ran = ldmrt(*words(folder, out, "--resume"))
    assert (ran.code, "done already: 1 of 1 steps" in ran.err) == (0, True)


@pytest.mark.slow
def test_a_resumed_run_has_the_autoencoder_of_the_saved_one(ldmrt: Any, folder: Path, tmp_path: Path) -> None:
    first, second, out = tmp_path / "first", tmp_path / "second", tmp_path / "out"
    assert ldmrt(*words(folder, first)).code == 0
    assert ldmrt(*words(folder, second, "--seed", 1)).code == 0
    asked = ["train", "ldm", *words(folder, out)[2:]]
    assert ldmrt(*asked, "--autoencoder", first).code == 0
    assert "another autoencoder" in ldmrt(*asked, "--resume", "--autoencoder", second).error


def test_preview_of_large_images_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert [checks.preview(size) for size in (8, 64, 96, 128, 512)] == [32, 32, 14, 8, 4]


def test_a_signal_to_save_may_come_while_the_data_is_read(
    ldmrt: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*arguments: Any, **named: Any) -> Any:
        signal.raise_signal(signal.SIGUSR1)
        return open_data(*arguments, **named)

    monkeypatch.setattr(options, "open_data", read)
    assert ldmrt(*words(folder, tmp_path / "out")).code == 0
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_the_default_of_sigterm_is_left_as_it_was(ldmrt: Any, folder: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert ldmrt(*words(folder, tmp_path / "out")).code == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_log_that_cannot_be_written_elsewhere_is_refused_first(
    ldmrt: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, title in (("tensorboard", "TensorBoard"), ("wandb", "Weights & Biases")):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
        ran = ldmrt("train", "autoencoder", "--data", folder, "--out", tmp_path / "out", f"--{name}")
        assert (ran.code, f"{title} is not installed" in ran.error) == (2, True), ran.err
        assert f"pip install 'ldmrt[{name}]'" in ran.err
    assert not (tmp_path / "out").exists()
