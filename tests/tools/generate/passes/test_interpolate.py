"""`ldmrt interpolate` writes animations whose first and last frames are the plain images."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.images.animation import FORMATS, encode_animation
from ldmrt.runtime.pipeline.pipeline import Pipeline

from ....support.fakes.small_loras import small_lora

PROMPTS = ("two pears", "a red apple")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("suffix", ["gif", "webp", "mp4"])
def test_the_ends_are_the_plain_images(ldmrt: Any, bundle: Path, suffix: str) -> None:
    words = ("--steps", 2, "--guidance", 4.0)
    ran = ldmrt(
        "interpolate", bundle, *PROMPTS, "--frames", 4, "--fps", 10, "--seeds", "3,5", *words,
        "-o", f"a.{suffix}", "--save-frames", "frames",
    )  # fmt: skip
    assert (ran.code, ran.out.split()) == (0, ["frames", f"a.{suffix}"]), ran.err
    frames = [np.asarray(Image.open(path)) for path in sorted(Path("frames").iterdir())]
    assert len(frames) == 4
    for frame, (prompt, seed) in ((0, (PROMPTS[0], 3)), (3, (PROMPTS[1], 5))):
        ldmrt("generate", bundle, prompt, "--seed", seed, *words, "-o", f"{frame}.png")
        np.testing.assert_array_equal(frames[frame], np.asarray(Image.open(f"{frame}.png")))
    shown = decoded(Path(f"a.{suffix}"))
    if suffix == "webp":
        np.testing.assert_array_equal(shown, frames)
    # A GIF has 256 colours, and H.264 a quarter of the colours' pixels: the frames of this model are noise, and lose
    # some levels, but each is nearer to its own than to any other.
    losses = np.array([[np.abs(found.astype(int) - frame).mean() for frame in frames] for found in shown])
    assert losses.argmin(axis=1).tolist() == [0, 1, 2, 3]


def decoded(path: Path) -> list[np.ndarray]:
    """The frames of an animation, (H, W, 3)."""
    if path.suffix == ".mp4":
        import av

        with av.open(str(path)) as container:
            assert float(container.streams.video[0].average_rate or 0) == 10
            assert json.loads(container.metadata["comment"])["prompts"] == list(PROMPTS)
            return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with Image.open(path) as image:
        frames = []
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")))
        assert image.info["duration"] == 100
        if path.suffix == ".gif":
            assert json.loads(image.info["comment"])["seeds"] == [3, 5]
        return frames


@pytest.mark.parametrize("suffix", ["gif", "webp", "mp4"])
def test_an_animation_says_how_it_was_drawn(
    ldmrt: Any, bundle: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ("a café 🍐, " * 40, "a red apple")  # longer than a part of a GIF's comment
    words = ("--frames", 2, "--fps", 10, "--seeds", "3,5", "--steps", 1, "--scheduler", "euler")
    out = f"a.{suffix}"
    assert ldmrt("interpolate", bundle, *prompts, *words, "-o", out, "--save-frames", "frames").code == 0
    for path in (out, "frames/0001.png"):
        (found,) = json.loads(ldmrt("info", path, "--json").out)
        assert (found["program"], found["prompt"]) == ("ldmrt", "\n".join(prompts))
        expected = {"steps": 1, "sampler": "euler", "guidance": 5.0, "seed": [3, 5], "frames": 2, "fps": 10.0}
        assert {**expected, "width": 16, "height": 16, "model": bundle.name} == found["settings"]
        made = found["parameters"]["made"]
        assert [len(made["bundle_sha256"]), made["versions"]["numpy"]] == [64, np.__version__]
        assert [key["request"]["steps"] for key in made["keys"]] == [1, 1]
    if suffix == "mp4":
        cut = Path("cut.mp4")
        cut.write_bytes(Path(out).read_bytes()[:40])
        ran = ldmrt("info", cut)
        assert (ran.code, "cut.mp4; expected an MP4" in ran.error) == (2, True)
        monkeypatch.setitem(sys.modules, "av", None)
        monkeypatch.setattr("ldmrt.runtime.optional.is_installed", lambda name: False)
        ran = ldmrt("info", out)
        assert (ran.code, "PyAV is not installed" in ran.error) == (2, True), ran.err
        assert "try: pip install 'ldmrt[video]'" in ran.err


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".mp4"])
def test_an_animation_of_another_program_says_nothing(ldmrt: Any, suffix: str) -> None:
    frames = [np.full((16, 16, 3), level, np.uint8) for level in (0, 255)]
    for comment in ("", "a cat"):
        path = Path(f"a{suffix}")
        path.write_bytes(encode_animation(frames, FORMATS[suffix], 8, comment))
        ran = ldmrt("info", path)
        assert (ran.code, "does not say how it was drawn" in ran.error) == (2, True), ran.err


def test_one_prompt_and_several_seeds(ldmrt: Any, bundle: Path) -> None:
    words = ("interpolate", bundle, PROMPTS[0], "--seeds", "1,2,3", "--frames", 3, "--steps", 1, "-o", "a.gif")
    assert ldmrt(*words).code == 0
    assert "a_2.gif is written" in ldmrt(*words).err
    assert Path("a_2.gif").exists()


def test_an_odd_size_is_encoded(tmp_path: Path) -> None:
    frames = [np.full((15, 17, 3), level, np.uint8) for level in (0, 255)]
    import av

    with av.open(io.BytesIO(encode_animation(frames, "MP4", 8))) as container:
        shapes = [frame.to_ndarray(format="rgb24").shape for frame in container.decode(video=0)]
    assert shapes == [(16, 18, 3)] * 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((PROMPTS[0],), "nothing to interpolate between; expected two prompts, or one prompt and two seeds"),
        ((*PROMPTS, "--seeds", "1,2,3"), "--seeds: wrong number of seeds; expected 1 or 2 (one per prompt); found 3"),
        ((*PROMPTS, "a fox", "--frames", 2), "too few frames"),
        ((*PROMPTS, "-o", "a.png"), "invalid --out; expected a file name that ends in .gif, .webp, .mp4"),
        ((*PROMPTS, "--seeds", "1;2"), "is no list of seeds, such as 1,5"),
    ],
)
def test_what_is_refused(ldmrt: Any, bundle: Path, words: tuple[Any, ...], says: str) -> None:
    ran = ldmrt("interpolate", bundle, *words)
    assert (ran.code, says in ran.error) == (2, True), ran.err
    assert list(Path().iterdir()) == []


def test_mp4_without_pyav_says_what_to_install(ldmrt: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr("ldmrt.runtime.optional.is_installed", lambda name: False)
    ran = ldmrt("interpolate", bundle, *PROMPTS, "-o", "a.mp4")
    assert (ran.code, "PyAV is not installed" in ran.error) == (2, True), ran.err
    assert "try: pip install 'ldmrt[video]'" in ran.err


def test_frames_before_an_interruption_are_saved(ldmrt: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is written before the next one is drawn; OUT is not there."""
    draw, seen = Pipeline.interpolate, list[int]()

    def interrupted(self: Pipeline, *arguments: Any) -> Iterator[Any]:
        for number, result in enumerate(draw(self, *arguments)):
            seen.append(len(list(Path("frames").glob("*.png"))))
            if number == 2:
                raise LdmrtError("test", "interrupted", expected="no interruption")
            yield result

    monkeypatch.setattr(Pipeline, "interpolate", interrupted)
    ran = ldmrt("interpolate", bundle, *PROMPTS, "--frames", 4, "--steps", 1, "-o", "a.webp", "--save-frames", "frames")
    assert (ran.code, "interrupted" in ran.error, seen) == (2, True, [0, 1, 2])
    assert sorted(path.name for path in Path().rglob("*") if path.is_file()) == ["0000.png", "0001.png"]


@pytest.mark.parametrize("kind", FORMATS.values())
def test_frames_are_encoded_as_they_come(kind: str) -> None:
    """An iterator gives the bytes of a list."""
    frames = [np.full((16, 16, 3), level, np.uint8) for level in (0, 90, 255)]
    assert encode_animation(iter(frames), kind, 8) == encode_animation(frames, kind, 8)


def test_images_of_an_ip_adapter_have_no_scale_here(ldmrt: Any, bundle: Path) -> None:
    ran = ldmrt("interpolate", bundle, *PROMPTS, "--ip-adapter-scale", 0.5)
    assert (ran.code, "--ip-adapter-scale" in ran.err) == (2, True)


def test_the_ends_have_their_loras_styles_and_wildcards(ldmrt: Any, bundle: Path) -> None:
    small_lora(Path("style.safetensors"), seed=1)
    Path("styles.csv").write_text("name,prompt,negative_prompt\nflat,flat {prompt},shadow\n")
    Path("words").mkdir()
    Path("words/colour.txt").write_text("red\nblue\ngreen\nyellow\n")
    words = ("--steps", 2, "--lora", "style.safetensors:0.5", "--styles", "styles.csv", "--style", "flat")
    words += ("--wildcards", "words")
    prompts = ("a __colour__ pear", "an apple")
    how = ("--seeds", "3,5", "--frames", 2, "--save-frames", "frames")
    assert ldmrt("interpolate", bundle, *prompts, *how, *words, "-o", "a.webp").code == 0
    for frame, (prompt, seed) in enumerate(zip(prompts, (3, 5), strict=True)):
        assert ldmrt("generate", bundle, prompt, "--seed", seed, *words, "-o", f"{frame}.png").code == 0
        with Image.open(f"{frame}.png") as plain, Image.open(f"frames/{frame:04d}.png") as found:
            np.testing.assert_array_equal(np.asarray(found), np.asarray(plain))
            facts = json.loads(found.info["ldmrt"])
            assert facts["prompts"][frame] == json.loads(plain.info["ldmrt"])["prompt"]
            assert facts["loras"] == {"style": 0.5}
