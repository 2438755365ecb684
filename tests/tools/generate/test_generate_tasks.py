"""`ldmrt generate` from a picture, inside a mask, and with the rows of the denoising kept."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ldmrt.runtime
from ldmrt.runtime import Request
from ldmrt.runtime import open as open_pipeline

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
        expected = pipeline(PROMPT, num_inference_steps=4, image=place / "in.png", strength=0.5, seed=3).pixels[0]
        other = pipeline(PROMPT, num_inference_steps=4, strength=0.5, width=32, height=20, seed=3).pixels[0]
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
            pipeline(p, num_inference_steps=4, image="in.png", mask_image="mask.png", strength=1.0).latents
            for p in (PROMPT, "a cat")
        ]
    np.testing.assert_array_equal(states[0][..., :8], states[1][..., :8])  # whatever the prompt says
    assert np.abs(states[0][..., 8:] - states[1][..., 8:]).max() > 1e-3


def test_a_region_is_pasted_over_the_whole_image(ldmrt: Any, bundle: Path, place: Path) -> None:
    """The image has its own size and pixels; a batch, rows that are saved, and the metadata's size give it again."""
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (40, 50, 3), np.uint8)).save("large.png")
    area = np.zeros((40, 50), np.uint8)
    area[10:20, 20:30] = 255
    Image.fromarray(area).save("spot.png")
    asked = [str(bundle), "two pears", "--image", "large.png", "--mask", "spot.png", "--padding-mask-crop", "3"]
    asked += ["--mask-content", "noise", "--steps", "2"]
    ldmrt("generate", *asked, "-o", "a.png")
    found = np.asarray(Image.open("a.png"))
    whole = np.asarray(Image.open("large.png"))
    np.testing.assert_array_equal(found[area == 0], whole[area == 0])
    assert (found[area > 0] != whole[area > 0]).any()
    saved = json.loads(Image.open("a.png").info["ldmrt"])
    assert [saved[name] for name in ("height", "width", "padding_mask_crop", "mask_content")] == [16, 16, 3, "noise"]
    ldmrt("generate", *asked, "--width", "16", "--height", "16", "--save-steps", "-o", "b.png")
    np.testing.assert_array_equal(np.asarray(Image.open("b.png")), found)
    ldmrt("generate", *asked, "-n", "2", "--batch", "1", "-o", "c.png")
    np.testing.assert_array_equal(np.asarray(Image.open("c-00.png")), found)


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


def test_rows_are_decoded_by_the_preview_decoder(ldmrt: Any, preview_bundle: Path, place: Path) -> None:
    """Of a bundle that has one. The image is the one that is drawn without them."""
    asked = ("generate", preview_bundle, "two pears", "--steps", 3, "--seed", 4, "--scheduler", "ddim")
    assert ldmrt(*asked, "--save-steps", "-o", "rows.png").code == ldmrt(*asked, "-o", "alone.png").code == 0
    np.testing.assert_array_equal(made(Path("rows.png")), made(Path("alone.png")))
    with open_pipeline(preview_bundle) as pipeline:
        request = Request("two pears", num_inference_steps=3, seed=4, scheduler="ddim")
        predicted = [np.array(state.x0) for state in pipeline.steps(request)]
        for row, x0 in enumerate(predicted):
            found = made(Path(f"rows-steps/{row:03d}.png"))
            np.testing.assert_array_equal(found, pipeline.preview(x0)[0])
            assert (found != pipeline.decode(x0)[0]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "none.png"], "File 'none.png' does not exist"),
        (["--mask", "mask.png"], "--mask without --image; expected --image"),
        (["--image", "in.png", "--strength", "1.5"], "invalid --strength; expected 0 to 1; found 1.5"),
        (["--image", "in.png", "--strength", "0"], "invalid strength"),
        (["--image", "text.png"], "cannot read text.png"),
        (["--image", "in.png", "--width", "15"], "invalid width; expected a multiple of 2"),
        (["--control", "canny"], "is not NAME=IMAGE"),
        (["--control", "canny=in.png:0.8"], "no control 'canny' here; expected none"),
        (["--clip-skip", "7"], "cannot skip 7 layers"),
        (["--guidance-interval", "1"], "'1' is not LOW,HIGH"),
        (["--guidance-interval", "3,1"], "invalid --guidance-interval"),
        (["--deep-cache", "0"], "invalid --deep-cache; expected at least 1; found 0"),
        (["--image", "in.png", "--mask", "mask.png", "--mask-from", "alpha"], "mask: has no alpha to take it from"),
        (["--deep-cache", "2"], "has no U-Net cut in two for a deep cache"),
        (["--deep-cache", "2", "--control", "canny=in.png"], "--deep-cache cannot be combined with --control"),
        (["--guidance-rescale", "2"], "invalid --guidance-rescale; expected 0 to 1; found 2"),
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


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_parameters_stand_in_every_format(ldmrt: Any, bundle: Path, place: Path, suffix: str) -> None:
    words = ("generate", bundle, PROMPT, "--steps", 2, "-n", 2, "--save-steps", "-o")
    for out in (f"new/a.{suffix}", "new/b.png"):
        assert ldmrt(*words, out).code == 0
    steps = {f"new/a-steps/{row:03d}.{suffix}" for row in range(2)} | {f"new/a-steps.{suffix}"}
    files = {f"new/a{part}.{suffix}" for part in ("", "-00", "-01")} | steps
    assert {str(path) for path in Path("new").rglob("a*.*")} | steps == files
    for name in ("", "-00", "-01"):
        with Image.open(f"new/b{name}.png") as image:
            notes, expected = json.loads(image.text["ldmrt"]), np.asarray(image)
        with Image.open(f"new/a{name}.{suffix}") as image:
            found = json.loads(image.getexif().get_ifd(0x8769)[0x927C].removeprefix(b"ldmrt\0"))
            assert found == notes
            assert np.asarray(image).shape == expected.shape
            assert suffix == "jpg" or (np.asarray(image) == expected).all()


def test_files_that_are_there_are_kept(ldmrt: Any, bundle: Path, place: Path) -> None:
    words = ("generate", bundle, PROMPT, "--steps", 1, "-o", "a.png", "--seed")
    first, second = ldmrt(*words, 1), ldmrt(*words, 2)
    assert (first.out, second.out) == ("a.png\n", "a_2.png\n")
    assert "warning: generate: a.png exists already, so a_2.png is written; --overwrite replaces it" in second.err
    kept, other = made(Path("a.png")), made(Path("a_2.png"))
    assert not np.array_equal(kept, other)
    third = ldmrt(*words, 2, "--overwrite")
    assert (third.out, "warning: generate" in third.err) == ("a.png\n", False)
    np.testing.assert_array_equal(made(Path("a.png")), other)


def test_one_image_for_each_prompt(ldmrt: Any, bundle: Path, place: Path) -> None:
    Image.fromarray(made(Path("in.png"))[::-1]).save("other.png")
    asked = ("--steps", 2, "--strength", 0.5, "--image", "in.png", "--image", "other.png", "--mask", "mask.png")
    for out, options in (("a.png", ()), ("b.png", ("--batch", 1))):
        assert ldmrt("generate", bundle, PROMPT, "a cat", *asked, *options, "-o", out).code == 0
    with Opened(bundle) as pipeline:
        expected = pipeline(
            [PROMPT, "a cat"], image=["in.png", "other.png"], mask_image="mask.png", num_inference_steps=2, strength=0.5
        )
    for i in range(2):
        np.testing.assert_array_equal(made(Path(f"a-{i:02d}.png")), expected.pixels[i])
        assert np.abs(made(Path(f"b-{i:02d}.png")).astype(int) - expected.pixels[i]).max() <= 1  # of sums' order
    with Image.open("a.png") as image:
        notes = json.loads(image.text["ldmrt"])
    assert (notes["image"], notes["mask"]) == (["in.png", "other.png"], "mask.png")


def test_mask_of_one_color_is_taken_from_its_alpha(ldmrt: Any, bundle: Path, place: Path) -> None:
    alpha = made(Path("mask.png"))
    Image.fromarray(np.dstack([np.zeros((*alpha.shape, 3), np.uint8), alpha])).save("alpha.png")
    words = ("generate", bundle, PROMPT, "--steps", 2, "--image", "in.png", "--mask")
    for out, options in (
        ("a.png", ("mask.png",)),
        ("b.png", ("alpha.png",)),
        ("c.png", ("alpha.png", "--mask-from", "alpha")),
    ):
        ran = ldmrt(*words, *options, "-o", out)
        assert ran.code == 0
        assert ("warning: mask: of one colour, and taken from its alpha" in ran.err) == (out == "b.png")
        np.testing.assert_array_equal(made(Path(out)), made(Path("a.png")))


def test_a_size_far_from_the_models_own(ldmrt: Any, bundle: Path, place: Path) -> None:
    words = ("generate", bundle, PROMPT, "--steps", 1, "-n", 3, "--batch", 1, "-o")
    far = "request: 64x32 is far from the model's own size, 16x16"
    assert ldmrt(*words, "a.png", "--width", 64, "--height", 32).err.count(far) == 1
    assert "far from" not in ldmrt(*words, "b.png", "--width", 24).err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "in.png", "--image", "in.png"], "image: wrong number of images; expected 1; found 2"),
        (["--image", "in.png", "--mask", "mask.png", "--mask-from", "red"], "Invalid value for '--mask-from'"),
        (["--image", "in.png", "--mask-from", "alpha"], "--mask-from without --mask"),
        (["--image", "in.png", "--padding-mask-crop", "4"], "--padding-mask-crop without --mask"),
        (["--image", "in.png", "--mask-content", "fill"], "--mask-content without --mask"),
        (["--control", "x=in.png", "--control", "x=in.png"], "control x: wrong number of images"),
        (["--control", "x=in.png", "--control", "x=in.png:2"], "control x: two scales; expected 1.0; found 2.0"),
        (["--control", "x=none.png"], "control x: missing file; expected none.png"),
        (["--image", "fifo"], "image: cannot read fifo; expected a regular file; found a FIFO"),
        (["--image", "."], "is a directory"),
        (["--image", "a\0b"], "contains a NUL"),
        (["--control", "x=a\0b"], "control x: cannot read"),
        (["-o", "a.gif"], "invalid --out"),
    ],
)
def test_images_that_do_not_fit(ldmrt: Any, place: Path, options: list[str], message: str) -> None:
    """They are refused before the bundle is opened: there is none."""
    os.mkfifo(place / "fifo")
    before = sorted(place.rglob("*"))
    assert message in ldmrt("generate", "none", PROMPT, *options).error
    assert sorted(place.rglob("*")) == before
