"""Tables fit the terminal, or 80 columns: nothing is cut off, and cells wrap between words."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ldmrt.runtime.bundle.engines.engine_key import Range, Recipe
from ldmrt.runtime.bundle.engines.store import FOLDER, write_engine
from ldmrt.tools.console import tables

ROWS = [
    ("edm_dpmpp_2m", "EDMDPMSolverMultistepScheduler", "2 N - 1", "timesteps, sigmas"),
    ("text_encoder_2-portable-0123456789abcdef", "TensorRT-RTX 1.7.1.116", "12345 MB", "1-8x77, 2-8x4x64-128x64-128"),
    ("controlnet_canny", "encoder_hidden_states float32(batch, 77, 2048)", "<= 2e-05", "FAILED 3 left out"),
]
TITLES = ("name", "class in diffusers", "calls", "largest input")


def cells(text: str) -> list[list[str]]:
    """The columns of what was printed, each a list of its lines."""
    lines = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in column] for column in zip(*lines, strict=True)]


@pytest.mark.parametrize("width", [40, 60, 80, 81, 100, 160, 300])
def test_it_fits_and_loses_nothing(capsys: Any, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    tables.show(TITLES, ROWS)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= width
    for column, found in zip(zip(*ROWS, strict=True), cells(said), strict=True):
        assert re.sub(r"\s", "", "".join(found)) == re.sub(r"\s", "", "".join(column))


def test_names_are_broken_at_their_joints(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    tables.show(TITLES, ROWS)
    parts = {part for column in cells(capsys.readouterr().out) for part in column}
    assert {"2 N - 1", "12345 MB", "<= 2e-05", "controlnet_canny", "edm_dpmpp_2m", "0123456789abcdef"} <= parts
    assert not [part for part in parts if re.fullmatch(r"MB|- 1|[a-z]", part)]


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("EulerAncestralDiscreteScheduler", 20, ["EulerAncestral", "DiscreteScheduler"]),
        ("a few words of text", 11, ["a few words", "of text"]),
        ("2-8x4x8x8, 2-8x4x12x16", 14, ["2-8x4x8x8,", "2-8x4x12x16"]),
        ("2-8x4x12x16", 8, ["2-8x4x12", "x16"]),
        ("text_encoder_2", 13, ["text_encoder_", "2"]),
        ("abcdefgh", 3, ["abc", "def", "gh"]),
        ("one\ntwo", 9, ["one", "two"]),
        ("", 5, [""]),
    ],
)
def test_wrapped(text: str, width: int, lines: list[str]) -> None:
    assert tables.wrapped(text, width).split("\n") == lines


def test_widths() -> None:
    assert tables.widths([3, 4], [3, 4], [10, 4], 20) == [10, 4]  # all there is
    assert tables.widths([9, 4], [5, 4], [30, 4], 10) == [6, 4]  # a name is broken, no further than need be
    assert sum(tables.widths([9, 9], [9, 9], [9, 9], 5)) == 5
    assert tables.widths([9, 9], [9, 9], [9, 9], 1) == [1, 1]


@pytest.fixture
def built(changed: Path) -> Path:
    """With two engines of straw, one of which cannot be read."""
    bucket = {"sample": Range((2, 4, 64, 64), (2, 4, 64, 64), (8, 4, 128, 128)), "timestep": Range((2,), (2,), (8,))}
    recipe = Recipe("unet", "0", "0", "fp16", "tensorrt-rtx", "1.7.1.116", "portable", (bucket, bucket))
    write_engine(changed / FOLDER, recipe, b"a plan", {"scratch": 12_345_678})
    (changed / FOLDER / "text_encoder-portable-0123456789abcdef").mkdir()
    return changed


COMMANDS = (
    "inspect BUNDLE",
    "plan BUNDLE --folded --sizes 16x16,32x24 --batch 1-4",
    "engines list BUNDLE",
    "samplers",
    "verify BUNDLE",
    "bench BUNDLE --steps 1 --pictures 1",
)


@pytest.mark.parametrize("words", COMMANDS)
def test_commands(ldmrt: Any, built: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = ldmrt(*(built if word == "BUNDLE" else word for word in words.split()))
    assert ran.code == 0, ran.err
    table = [line for line in ran.out.splitlines() if line[:1] in "┏┃┡│├└"]
    assert table
    assert {len(line) for line in table} <= set(range(81))
    assert "…" not in ran.out
    for cell in (cell for column in cells(ran.out) for cell in column):
        assert not re.fullmatch(r"MB|s|dB|[a-z]", cell), f"{cell!r} stands alone"


def test_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 columns, whatever the terminal of the tests has."""
    monkeypatch.delenv("COLUMNS", raising=False)
    command = [sys.executable, "-m", "ldmrt.tools.cli", "samplers"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8").stdout
    table = [line for line in said.splitlines() if line[:1] in "┏┃┡│├└"]
    assert max(map(len, table)) <= 80
    assert "edm_dpmpp_2m" in said
    assert "…" not in said
