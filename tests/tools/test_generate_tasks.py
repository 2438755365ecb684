"""`ldmrt generate` from a picture, inside a mask, and with the rows of the denoising kept."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ldmrt.runtime

PROMPT = "two pears"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a picture and a mask, to work in."""
    colours = np.random.default_rng(0).integers(0, 255, (20, 33, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "in.png")
    area = np.zeros((20, 33), np.uint8)
    area[:, 16:] = 255
    Image.fromarray(area).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


def test_from_a_picture(ldmrt: Any, bundle: Path, place: Path) -> None:
    words = ("generate", bundle, PROMPT, "--steps", 4, "--image", "in.png", "--strength", 0.5, "--seed", 3)
    assert ldmrt(*words).code == 0
    with Opened(bundle) as pipeline:
        expected = pipeline(PROMPT, steps=4, image=place / "in.png", strength=0.5, seed=3).images[0]
        other = pipeline(PROMPT, steps=4, strength=0.5, width=32, height=20, seed=3).images[0]
    assert expected.shape == (20, 32, 3)  # the picture's own size, cut to whole latents
    np.testing.assert_array_equal(made(Path("out.png")), expected)
    assert not np.array_equal(expected, other)
    with Image.open("out.png") as image:
        notes = json.loads(image.text["ldmrt"])
    assert (notes["image"], notes["strength"], notes["mask"]) == ("in.png", 0.5, None)


def test_mask_keeps_the_black_part(ldmrt: Any, bundle: Path, place: Path) -> None:
    words = ("generate", bundle, PROMPT, "--steps", 4, "--image", "in.png", "--mask", "mask.png", "--strength", 1.0)
    assert ldmrt(*words).code == 0
    with Opened(bundle) as pipeline:
        states = [
            pipeline(p, steps=4, image="in.png", mask="mask.png", strength=1.0).latents for p in (PROMPT, "a cat")
        ]
    np.testing.assert_array_equal(states[0][..., :8], states[1][..., :8])  # whatever the prompt says
    assert np.abs(states[0][..., 8:] - states[1][..., 8:]).max() > 1e-3


def test_rows_of_the_denoising(ldmrt: Any, bundle: Path, place: Path) -> None:
    ran = ldmrt(
        "generate", bundle, PROMPT, "-n", 2, "--steps", 3, "--save-steps", "--scheduler", "euler", "-o", "new/pear.png"
    )
    rows = [Path(f"new/pear-steps/{row:03d}.png") for row in range(3)]
    assert ran.code == 0
    assert ran.out.splitlines()[3:] == [*map(str, rows), "new/pear-steps.png"]
    assert made(rows[0]).shape == (16, 34, 3)  # both pictures of a row
    strip = made(Path("new/pear-steps.png"))
    assert strip.shape == (34, 52, 3)  # a line a picture, a column a row
    np.testing.assert_array_equal(strip[:16, 36:], made(rows[2])[:, :16])
    assert len(np.unique([made(row).tobytes() for row in rows])) == 3
    # Euler's last row ends where the network says: its word is the picture, but for rounding that tips a grey level
    assert np.abs(made(rows[2])[:, :16].astype(int) - made(Path("new/pear-00.png"))).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "none.png"], "File 'none.png' does not exist"),
        (["--mask", "mask.png"], "a mask without a picture"),
        (["--image", "in.png", "--strength", "1.5"], "invalid strength; expected 0 to 1; found 1.5"),
        (["--image", "in.png", "--strength", "0"], "impossible strength"),
        (["--image", "text.png"], "cannot read text.png"),
        (["--image", "in.png", "--width", "15"], "invalid width; expected a multiple of 2"),
        (["--control", "canny"], "is not NAME=PICTURE"),
        (["--control", "canny=in.png:0.8"], "no control 'canny' here; expected none"),
        (["--clip-skip", "7"], "cannot skip 7 layers"),
        (["--guidance-interval", "1"], "'1' is not LOW,HIGH"),
        (["--guidance-interval", "3,1"], "invalid guidance_interval"),
        (["--deep-cache", "0"], "invalid deep_cache; expected at least 1; found 0"),
        (["--deep-cache", "2"], "has no U-Net cut in two for a deep cache"),
        (["--deep-cache", "2", "--control", "canny=in.png"], "a deep cache beside controls"),
        (["--guidance-rescale", "2"], "invalid guidance_rescale; expected 0 to 1; found 2"),
    ],
)
def test_bad_option(ldmrt: Any, bundle: Path, place: Path, options: list[str], message: str) -> None:
    (place / "text.png").write_text("no picture")
    before = sorted(place.rglob("*"))
    assert message in ldmrt("generate", bundle, PROMPT, "--steps", 2, *options).error
    assert sorted(place.rglob("*")) == before


class Opened:
    """An opened bundle that is closed again."""

    def __init__(self, bundle: Path) -> None:
        self.pipeline = ldmrt.runtime.open(bundle)

    def __enter__(self) -> Any:
        return self.pipeline

    def __exit__(self, *_: object) -> None:
        self.pipeline.close()
