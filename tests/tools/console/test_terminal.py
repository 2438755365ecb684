"""Images in a terminal: what was written shows the image, in one place, and nothing is written where nobody sees it."""

import os
import struct
from io import StringIO
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.parity.metrics import psnr
from ldmrt.tools.console.terminal.protocols import AUTO, BLOCKS, PROTOCOLS, SIXEL, protocol_of
from ldmrt.tools.console.terminal.screen import CELL, MOST_LINES, Screen, fit, resized

from ...support.fakes.terminal import Pixels, Shown, Terminal, of_sixels
from ..conftest import command


def picture(height: int, width: int, seed: int = 0) -> Pixels:
    """Smooth, and coloured."""
    small = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def shown(protocol: str, *images: Pixels, every_colour: bool = True) -> Shown:
    terminal = Terminal()
    terminal.write("$ ldmrt generate\n")
    screen = Screen(terminal, protocol, every_colour=every_colour)
    for number, image in enumerate(images):
        screen.show(image, f"row {number + 1} of {len(images)}")
    terminal.write("out.png\n")
    return terminal.read_screen()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("size", [(16, 16), (512, 512), (40, 90)])
def test_shows_the_last_image_in_the_place_of_the_first(protocol: str, size: tuple[int, int]) -> None:
    images = [picture(*size, seed) for seed in range(3)]
    found = shown(protocol, *images)
    columns, lines = fit(size, (80, 24), CELL)
    assert 1 <= lines <= 22
    assert columns <= 79
    assert abs(columns * CELL[0] / (lines * CELL[1]) / (size[1] / size[0]) - 1) < 0.1  # not distorted
    assert found.text(0) == "$ ldmrt generate"
    assert found.text(1 + lines) == "row 3 of 3"
    assert found.text(2 + lines) == "out.png"
    if protocol == BLOCKS:
        np.testing.assert_array_equal(found.pixels(1, columns, lines), resized(images[-1], columns, 2 * lines))
        return
    assert [(line, column) for line, column, _, _ in found.images] == [(1, 0)] * 3
    _, _, about, image = found.images[-1]
    if protocol == SIXEL:
        expected = resized(images[-1], columns * CELL[0], lines * CELL[1])
        assert psnr(image, expected) > 30  # 256 colours, in percent
        return
    np.testing.assert_array_equal(image, resized(images[-1], image.shape[1], image.shape[0]))
    assert image.shape[0] <= max(size[0], lines * CELL[1])
    names = ("c", "r") if protocol == "kitty" else ("width", "height")
    assert [about[name] for name in names] == [str(columns), str(lines)]
    if protocol == "kitty":
        assert len({said["i"] for _, _, said, _ in found.images}) == 1  # so that it takes the other's place


def test_sixels_of_few_colours_are_exact() -> None:
    """But for percents, of which a level is off by at most 1.3."""
    from ldmrt.tools.console.terminal.encoders import sixel

    palette = np.random.default_rng(0).integers(0, 256, (40, 3), np.uint8)
    image = palette[np.random.default_rng(1).integers(0, 40, (15, 23))]
    written = sixel(image)
    found = of_sixels(written.removeprefix("\x1bP").removesuffix("\x1b\\"))
    assert np.abs(found.astype(int) - image).max() <= 2


def test_fixed_colours_are_the_nearest() -> None:
    """No other of the 240 is nearer, by brute force."""
    from ...support.fakes.terminal import colour

    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    image[:4] = image[:4, :, :1]  # greys
    columns, lines = fit((40, 60), (80, 24), CELL)
    small = resized(image, columns, 2 * lines).astype(int)
    found = shown(BLOCKS, image, every_colour=False).pixels(1, columns, lines).astype(int)
    every = np.array([colour(f"5;{number}") for number in range(16, 256)])
    least = ((small[:, :, None] - every) ** 2).sum(-1).min(-1)
    np.testing.assert_array_equal(((small - found) ** 2).sum(-1), least)


def test_an_image_fits_the_terminal() -> None:
    assert fit((512, 512), (200, 100), (8, 16)) == (2 * MOST_LINES, MOST_LINES)
    assert fit((512, 512), (200, 12), (8, 16)) == (20, 10)
    assert fit((100, 1000), (41, 24), (10, 20)) == (40, 2)
    assert fit((1000, 10), (3, 2), (8, 16)) == (1, 1)


LC = {"TERM": "xterm-256color"}
KNOWN: list[tuple[dict[str, str], str | None]] = [
    ({"TERM": "xterm-kitty"}, "kitty"),
    ({**LC, "KITTY_WINDOW_ID": "1"}, "kitty"),
    ({"TERM": "xterm-ghostty"}, "kitty"),
    ({**LC, "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
    ({**LC, "LC_TERMINAL": "iTerm2"}, "iterm2"),  # through ssh
    ({**LC, "TERM_PROGRAM": "WezTerm"}, "iterm2"),
    ({"TERM": "foot"}, "sixel"),
    ({"TERM": "mlterm-256color"}, "sixel"),
    (LC, "blocks"),
    ({**LC, "TERM_PROGRAM": "vscode"}, "blocks"),
    ({"TERM": "tmux-256color", "TERM_PROGRAM": "iTerm.app"}, "blocks"),
    ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, "blocks"),
    ({"TERM": "dumb"}, None),
    ({}, None),
]


@pytest.mark.parametrize(("environment", "protocol"), KNOWN)
def test_the_terminal_is_known_by_its_environment(environment: dict[str, str], protocol: str | None) -> None:
    assert protocol_of(Terminal(), environment) == protocol
    assert protocol_of(StringIO(), environment) is None  # no terminal
    assert protocol_of(StringIO(), environment, SIXEL) is None
    if protocol is not None:
        assert protocol_of(Terminal(), environment, SIXEL) == SIXEL


def test_a_terminal_without_half_blocks_is_shown_none() -> None:
    terminal = Terminal()
    terminal.encoding = "ascii"  # type: ignore[misc]
    assert protocol_of(terminal, LC) is None
    assert protocol_of(terminal, LC, "kitty") == "kitty"


def test_a_real_terminal_tells_its_size() -> None:
    """One of the system's own, whose other end is read meanwhile."""
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 60, 600, 240))
    received = list[bytes]()

    def read() -> None:
        while b"done" not in (piece := os.read(ours, 65536)):
            received.append(piece)
        received.append(piece)

    reader = Thread(target=read)
    reader.start()
    image = picture(64, 64)
    with open(theirs, "w", encoding="utf-8") as stream:
        screen = Screen.of(stream, {"TERM": "foot"}, AUTO)
        assert screen is not None
        screen.show(image, "row 1 of 2")
        screen.show(image, "done")
        reader.join(60)
    os.close(ours)
    found = Shown(b"".join(received).decode().replace("\r\n", "\n"), 12)
    assert [(line, column) for line, column, _, _ in found.images] == [(0, 0)] * 2
    assert found.images[0][3].shape == (200, 200, 3)  # 10 lines of 20 pixels
    assert found.text(10) == "done"


@pytest.mark.parametrize("images", [1, 3])
def test_generate_shows_what_rows_predict(
    images: int, preview_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """And saves the images that it saves without; where the output is no terminal it writes no escapes."""
    asked = ("generate", preview_bundle, "two pears", "--steps", 3, "--seed", 4, "-n", images, "-o")
    assert command(*asked, tmp_path / "alone.png", "--preview", "kitty") == 0
    assert "\x1b" not in capsys.readouterr().err
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm-kitty")
    monkeypatch.setattr("sys.stderr", terminal)
    assert command(*asked, tmp_path / "seen.png", "--preview", "auto") == 0
    assert (tmp_path / "seen.png").read_bytes() == (tmp_path / "alone.png").read_bytes()
    with open_pipeline(preview_bundle, check=False) as pipeline:
        request = {"num_inference_steps": 3, "seed": 4, "num_images_per_prompt": images}
        rows = [pipeline.preview(state.x0) for state in pipeline.steps(_request("two pears", **request))]
        final = pipeline("two pears", **request).pixels
    found = terminal.read_screen().images
    assert len(found) == 4  # of three rows, and the image
    for (_, _, _, image), batch in zip(found, [*rows, final], strict=True):
        np.testing.assert_array_equal(image[:16, :16], batch[0])
        if images == 3:
            assert image.shape == (34, 34, 3)
            np.testing.assert_array_equal(image[18:, :16], batch[2])


def _request(prompt: str, **asked: Any) -> Any:
    from ldmrt.runtime import Request

    return Request(prompt, **asked)
