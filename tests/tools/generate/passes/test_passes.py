"""A second pass, a canvas and variations by commands that draw many images, or show how one is drawn."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmrt.tools.options.drawing import HOW, with_options

PROMPT = "two pears"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save("in.png")


def test_rows_of_both_passes_are_saved(ldmrt: Any, bundle: Path) -> None:
    """The first pass's are smaller, by no whole number here."""
    words = ("generate", bundle, PROMPT, "--steps", 2, "--hires", 1.5, "--hires-steps", 4, "-n", 2)
    assert ldmrt(*words, "-o", "a.png").code == ldmrt(*words, "--save-steps", "-o", "b.png").code == 0
    np.testing.assert_array_equal(np.asarray(Image.open("a-01.png")), np.asarray(Image.open("b-01.png")))
    rows = [Image.open(path).size for path in sorted(Path("b-steps").iterdir())]
    assert rows == [(2 * 16 + 2, 16)] * 2 + [(2 * 24 + 2, 24)] * 2  # two images beside one another
    assert Image.open("b-steps.png").size == (4 * 26 - 2, 2 * 26 - 2)


def test_lines_of_a_batch(ldmrt: Any, bundle: Path) -> None:
    lines = [
        {"prompt": PROMPT, "hires": 2, "hires_upscaler": "pixel", "steps": 2, "seed": 3},
        {"prompt": PROMPT, "image": "in.png", "outpaint": [0, 0, 6, 0], "feather": 2, "steps": 2, "strength": 1},
        {"prompt": PROMPT, "seed": 3, "variation_seed": 9, "variation_strength": 0.3, "steps": 2, "count": 2},
    ]
    Path("lines.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    ran = ldmrt("batch", bundle, "lines.jsonl", "out")
    assert (ran.code, "3 drawn, 0 failed; 4 images" in ran.err) == (0, True), ran.err
    files = sorted(Path("out").rglob("*.png"))
    assert [Image.open(file).size for file in files] == [(32, 32), (22, 16), (16, 16), (16, 16)]
    for file in files:
        assert ldmrt("replay", file, "--bundle", bundle).code == 0


def test_the_options_know_every_upscaler() -> None:
    from ldmrt.runtime.images.resizing import UPSCALERS
    from ldmrt.runtime.pipeline.infotext.hires import HIRES_NAMES

    (param,) = [one for one in with_options(HOW)(lambda: None).__click_params__ if one.name == "hires_upscaler"]
    assert list(param.type.choices) == list(UPSCALERS)
    assert set(HIRES_NAMES.values()) == set(UPSCALERS)


def test_a_refiner_has_no_second_pass(ldmrt: Any, bundle: Path) -> None:
    ran = ldmrt("generate", bundle, PROMPT, "--refiner", bundle, "--hires", 2, "--steps", 2)
    assert (ran.code, "hires cannot be combined with a refiner" in ran.error) == (2, True), ran.err
    assert not Path("out.png").exists()
