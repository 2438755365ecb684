"""`ldmrt replay` draws an animation again, or a frame of one, from the record in its file alone."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldmrt.runtime.images.animation import FORMATS, decode_animation, encode_animation
from ldmrt.runtime.images.exif import OWN, exif_of
from ldmrt.runtime.images.png import notes
from ldmrt.runtime.pipeline.pipeline import Pipeline

from ....support.fakes.small_loras import small_lora

PROMPTS = ("two pears", "a red apple")
SIDE = 48  # x264 reads memory that it has not set where a frame has fewer than three of its blocks of 16 pixels
SIZE = ("--width", SIDE, "--height", SIDE)
BYTES = SIDE * SIDE * 3  # of a frame


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def drawn(ldmrt: Any, bundle: Path, out: str, *words: Any) -> None:
    """Draw an animation of three frames, whose frames are saved too."""
    how = (*SIZE, "--frames", 3, "--fps", 10, "--steps", 2, "--save-frames", "frames", "-o", out)
    ran = ldmrt("interpolate", bundle, *(words or (*PROMPTS, "--seeds", "3,5")), *how)
    assert ran.code == 0, ran.err


@pytest.mark.parametrize("suffix", ["gif", "webp", "mp4"])
def test_an_animation_is_drawn_again_bit_for_bit(ldmrt: Any, bundle: Path, suffix: str) -> None:
    drawn(ldmrt, bundle, f"a.{suffix}")
    ran = ldmrt("replay", f"a.{suffix}", "--bundle", bundle, "-o", f"b.{suffix}")
    assert (ran.code, "differs" in ran.out) == (0, False), ran.err
    assert f"identical: 3 frames of {SIDE}x{SIDE}, all {3 * BYTES} bytes of pixels\nb.{suffix}\n" in ran.out
    assert Path(f"b.{suffix}").read_bytes() == Path(f"a.{suffix}").read_bytes()  # its record too


def test_a_saved_frame_is_drawn_again_alone(ldmrt: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn(ldmrt, bundle, "a.gif")
    asked, interpolate = list[int](), Pipeline.interpolate

    def watched(self: Pipeline, requests: Any, frames: int, start: int = 0) -> Any:
        asked.append(start)
        return interpolate(self, requests, frames, start)

    monkeypatch.setattr(Pipeline, "interpolate", watched)
    for number in range(3):
        ran = ldmrt("replay", f"frames/{number:04d}.png", "--bundle", bundle, "-o", f"{number}.png")
        assert (ran.code, f"identical: {SIDE}x{SIDE}, all {BYTES} bytes" in ran.out) == (0, True), ran.err
        assert Path(f"{number}.png").read_bytes() == Path(f"frames/{number:04d}.png").read_bytes()
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("name", ["one prompt", "styles", "scheduler", "lora"])
def test_all_that_frames_are_drawn_by(ldmrt: Any, bundle: Path, name: str) -> None:
    small_lora(Path("style.safetensors"), seed=1)
    Path("styles.csv").write_text("name,prompt,negative_prompt\nflat,flat {prompt},shadow\n")
    words: dict[str, tuple[Any, ...]] = {
        "one prompt": (PROMPTS[0], "--seeds", "3,5,7", "--variation-seed", 9, "--variation-strength", 0.3),
        "styles": (*PROMPTS, "--negative", "grey", "--styles", "styles.csv", "--style", "flat"),
        "scheduler": (*PROMPTS, "--scheduler", "euler_a", "--eta", 0.5, "--noise", "torch-cpu", "--guidance", 3.0),
        "lora": (*PROMPTS, "--lora", "style.safetensors:0.5", "--prompt-syntax", "a1111"),
    }
    drawn(ldmrt, bundle, "a.webp", *words[name])
    ran = ldmrt("replay", "a.webp", "--bundle", bundle)
    assert (ran.code, "identical: 3 frames" in ran.out, "differs" in ran.out) == (0, True, False), ran.err


def frames_of(path: Path) -> list[np.ndarray]:
    with path.open("rb") as file:
        return list(decode_animation(file, FORMATS[path.suffix], 10, 5))


def rewritten(ldmrt: Any, path: Path, change: Any) -> None:
    """Write an animation anew, with parameters and frames that a function has changed."""
    facts = json.loads(ldmrt("info", path, "--json").out)[0]["parameters"]
    frames = frames_of(path)
    frames = change(facts, frames) or frames
    text = json.dumps(facts)
    path.write_bytes(encode_animation(frames, FORMATS[path.suffix], 10, text, exif_of({OWN: text}).tobytes()))


def test_what_differs_is_counted_over_all_frames(ldmrt: Any, bundle: Path) -> None:
    def other(facts: Any, frames: Any) -> None:
        facts["made"]["bundle_sha256"] = "0" * 64
        frames[2] = frames[2].copy()
        frames[2][0, 0, 0] ^= 1

    drawn(ldmrt, bundle, "a.webp")
    rewritten(ldmrt, Path("a.webp"), other)
    ran = ldmrt("replay", "a.webp", "--bundle", bundle)
    assert (ran.code, "bundle_sha256" in ran.out) == (1, True), ran.err
    psnr = 10 * np.log10(255**2 * 3 * BYTES)  # one bit of one byte: the mean square is 1 in all bytes
    found = f"1 of {3 * BYTES} bytes of pixels differ, PSNR {psnr:.1f} dB"
    assert f"not identical: 3 frames of {SIDE}x{SIDE}, {found}\n" in ran.out


def fewer(facts: Any, frames: Any) -> Any:
    return frames[:2]


def smaller(facts: Any, frames: Any) -> Any:
    return [frame[:24] for frame in frames]


def one_frame(facts: Any, frames: Any) -> None:
    facts["frames"] = 1


def endless(facts: Any, frames: Any) -> None:
    facts["frames"] = 10**9


def odd_speed(facts: Any, frames: Any) -> None:
    facts["fps"] = "10"


def half_a_character(facts: Any, frames: Any) -> None:
    facts["note"] = "\ud800"


def outside(facts: Any, frames: Any) -> None:
    facts["frame"] = 3


def few_seeds(facts: Any, frames: Any) -> None:
    facts["seeds"] = [3]


def no_keys(facts: Any, frames: Any) -> None:
    del facts["made"]["keys"]


def odd_keys(facts: Any, frames: Any) -> None:
    facts["made"]["keys"] = [1, None]


def refined(facts: Any, frames: Any) -> None:
    facts["made"]["refiner"] = {"bundle": "sdxl-refiner", "start": 0.8}


def no_record(facts: Any, frames: Any) -> None:
    del facts["made"]


def other_settings(facts: Any, frames: Any) -> None:
    facts["made"]["keys"][0]["request"]["steps"] = 3


@pytest.mark.parametrize("suffix", ["gif", "webp", "mp4"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fewer, "has another number of frames than its record; expected 3; found 2"),
        (smaller, "has another size than its record; expected 48x48; found 48x24"),
        (one_frame, "has a damaged record; expected as ldmrt wrote it; found 1 frames"),
        (endless, "has a damaged record; expected as ldmrt wrote it; found 1000000000 frames"),
        (odd_speed, "has a damaged record; expected as ldmrt wrote it; found '10' frames a second"),
        (half_a_character, "has a damaged record"),
        (outside, "has a damaged record; expected as ldmrt wrote it; found frame 3 of 3"),
        (few_seeds, "has a damaged record"),
        (no_keys, "lacks the record to draw it by"),
        (odd_keys, "has a damaged record"),
        (refined, "has a damaged record; expected as ldmrt wrote it; found an animation with a grid or a refiner"),
        (no_record, "lacks the record to draw it by"),
        (other_settings, "requests with different settings cannot be interpolated"),
    ],
)
def test_what_cannot_be_drawn_again_is_refused(
    ldmrt: Any, bundle: Path, made: dict[str, bytes], suffix: str, change: Any, message: str
) -> None:
    path = Path(f"a.{suffix}")
    path.write_bytes(made[suffix])
    rewritten(ldmrt, path, change)
    ran = ldmrt("replay", path, "--bundle", bundle, "-o", f"b.{suffix}")
    assert (ran.code, message in ran.error) == (2, True), ran.error
    assert not Path(f"b.{suffix}").exists()


@pytest.fixture(scope="module")
def made(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """An animation in each format."""
    from click.testing import CliRunner

    from ldmrt.tools.cli import cli

    folder = tmp_path_factory.mktemp("animations")
    for suffix in ("gif", "webp", "mp4"):
        words = [
            str(bundle),
            *PROMPTS,
            *map(str, SIZE),
            "--seeds",
            "3,5",
            "--frames",
            "3",
            "--fps",
            "10",
            "--steps",
            "2",
        ]
        ran = CliRunner().invoke(cli, ["interpolate", *words, "-o", str(folder / f"a.{suffix}")])
        assert ran.exit_code == 0, ran.output
    return {path.suffix[1:]: path.read_bytes() for path in folder.iterdir()}


def test_it_is_saved_in_its_own_format(ldmrt: Any, bundle: Path) -> None:
    drawn(ldmrt, bundle, "a.gif")
    ran = ldmrt("replay", "a.gif", "--bundle", bundle, "-o", "b.mp4")
    assert (ran.code, "expected a file name that ends in .gif; found b.mp4" in ran.error) == (2, True), ran.err


def test_an_image_with_the_record_of_an_animation(ldmrt: Any, bundle: Path) -> None:
    """As a program leaves it that saves the first frame with the texts of the file."""
    drawn(ldmrt, bundle, "a.gif")
    facts = json.loads(ldmrt("info", "a.gif", "--json").out)[0]["parameters"]
    texts = PngInfo()
    texts.add_itxt("ldmrt", json.dumps(facts))
    Image.fromarray(frames_of(Path("a.gif"))[0]).save("a.png", pnginfo=texts)
    ran = ldmrt("replay", "a.png", "--bundle", bundle)
    assert (ran.code, "a.png has a damaged record" in ran.error) == (2, True), ran.err
    assert "all of 3 frames in a file of PNG" in ran.error


@pytest.mark.parametrize("suffix", ["gif", "webp", "mp4"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_file_that_was_cut(ldmrt: Any, bundle: Path, made: dict[str, bytes], suffix: str, share: float) -> None:
    """One error, or all its pixels where the end of a file says nothing of them."""
    Path(f"a.{suffix}").write_bytes(made[suffix][: int(len(made[suffix]) * share)])
    ran = ldmrt("replay", f"a.{suffix}", "--bundle", bundle)
    assert (ran.code, ran.err.count("error: ")) in ((2, 1), (0, 0)), ran.err


def test_a_video_without_frames(ldmrt: Any, bundle: Path, made: dict[str, bytes]) -> None:
    import av

    Path("whole.mp4").write_bytes(made["mp4"])
    facts = json.loads(ldmrt("info", "whole.mp4", "--json").out)[0]["parameters"]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"movflags": "empty_moov+frag_keyframe"}) as container:
        container.metadata["comment"] = notes(facts)[OWN]
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        container.start_encoding()
    Path("a.mp4").write_bytes(buffer.getvalue())
    ran = ldmrt("replay", "a.mp4", "--bundle", bundle)
    assert (ran.code, ran.err.count("error: ")) == (2, 1), ran.err


@pytest.mark.parametrize("suffix", ["gif", "webp", "mp4"])
@pytest.mark.parametrize("fps", [10, 12, 30, 90])
def test_equal_frames_are_held_as_one(ldmrt: Any, bundle: Path, suffix: str, fps: int) -> None:
    how = (*SIZE, "--seeds", "3,3", "--frames", 7, "--fps", fps, "--steps", 1, "-o", f"a.{suffix}")
    assert ldmrt("interpolate", bundle, PROMPTS[0], *how).code == 0
    if suffix != "mp4":
        with Image.open(f"a.{suffix}") as image:
            assert getattr(image, "n_frames", 1) == 1
    ran = ldmrt("replay", f"a.{suffix}", "--bundle", bundle)
    assert f"identical: 7 frames of {SIDE}x{SIDE}, all {7 * BYTES} bytes" in ran.out, ran.err


def test_a_frame_that_differs_from_its_equals_is_counted(ldmrt: Any, bundle: Path) -> None:
    def other(facts: Any, frames: Any) -> None:
        frames[2] = frames[2].copy()
        frames[2][0, 0, 0] ^= 1

    how = (*SIZE, "--seeds", "3,3", "--frames", 5, "--fps", 10, "--steps", 1, "-o", "a.webp")
    assert ldmrt("interpolate", bundle, PROMPTS[0], *how).code == 0
    rewritten(ldmrt, Path("a.webp"), other)
    ran = ldmrt("replay", "a.webp", "--bundle", bundle)
    assert (ran.code, f"not identical: 5 frames of {SIDE}x{SIDE}, 1 of {5 * BYTES} bytes" in ran.out) == (1, True), (
        ran.err
    )


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone limits a process to some cores")
def test_a_video_has_the_same_bytes_on_any_number_of_cores() -> None:
    encodes = "import os, sys, hashlib, numpy as np\n"
    encodes += "os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:int(sys.argv[1])])\n"
    encodes += "from ldmrt.runtime.images.animation import encode_animation\n"
    encodes += "frames = np.random.default_rng(0).integers(0, 255, (8, 128, 128, 3), np.uint8)\n"
    encodes += "print(hashlib.sha256(encode_animation(frames, 'MP4', 8)).hexdigest())"
    words = [sys.executable, "-c", encodes]
    one, all_cores = (subprocess.run([*words, count], capture_output=True, text=True).stdout for count in ("1", "64"))
    assert one == all_cores != ""


def test_a_frame_in_another_format(ldmrt: Any, bundle: Path) -> None:
    drawn(ldmrt, bundle, "a.gif")
    assert ldmrt("replay", "frames/0001.png", "--bundle", bundle, "-o", "1.jpg").code == 0
    ran = ldmrt("replay", "1.jpg", "--bundle", bundle)
    assert (ran.code, f"identical: {SIDE}x{SIDE}" in ran.out) == (0, True), ran.err
