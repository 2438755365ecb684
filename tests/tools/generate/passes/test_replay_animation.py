"""`ldmrt replay` draws an animation again, or a frame of one, from the record in its file alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldmrt.runtime.images.animation import FORMATS, decode_animation
from ldmrt.tools.console.drawing.embedded.animations import encode

from ....support.fakes.small_loras import small_lora

PROMPTS = ("two pears", "a red apple")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def drawn(ldmrt: Any, bundle: Path, out: str, *words: Any) -> None:
    """Draw an animation of three frames, whose frames are saved too."""
    how = ("--frames", 3, "--fps", 10, "--steps", 2, "--save-frames", "frames", "-o", out)
    ran = ldmrt("interpolate", bundle, *(words or (*PROMPTS, "--seeds", "3,5")), *how)
    assert ran.code == 0, ran.err


@pytest.mark.parametrize("suffix", ["gif", "webp", "mp4"])
def test_an_animation_is_drawn_again_bit_for_bit(ldmrt: Any, bundle: Path, suffix: str) -> None:
    drawn(ldmrt, bundle, f"a.{suffix}")
    ran = ldmrt("replay", f"a.{suffix}", "--bundle", bundle, "-o", f"b.{suffix}")
    assert (ran.code, "differs" in ran.out) == (0, False), ran.err
    assert f"identical: 3 frames of 16x16, all {3 * 16 * 16 * 3} bytes of pixels\nb.{suffix}\n" in ran.out
    assert Path(f"b.{suffix}").read_bytes() == Path(f"a.{suffix}").read_bytes()  # its record too


def test_a_saved_frame_is_drawn_again_alone(ldmrt: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ldmrt.runtime.pipeline.pipeline import Pipeline

    drawn(ldmrt, bundle, "a.gif")
    asked, interpolate = list[int](), Pipeline.interpolate

    def watched(self: Pipeline, requests: Any, frames: int, start: int = 0) -> Any:
        asked.append(start)
        return interpolate(self, requests, frames, start)

    monkeypatch.setattr(Pipeline, "interpolate", watched)
    for number in range(3):
        ran = ldmrt("replay", f"frames/{number:04d}.png", "--bundle", bundle, "-o", f"{number}.png")
        assert (ran.code, "identical: 16x16, all 768 bytes" in ran.out) == (0, True), ran.err
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
        return list(decode_animation(file, FORMATS[path.suffix]))


def rewritten(ldmrt: Any, path: Path, change: Any) -> None:
    """Write an animation anew, with parameters and frames that a function has changed."""
    facts = json.loads(ldmrt("info", path, "--json").out)[0]["parameters"]
    frames = frames_of(path)
    frames = change(facts, frames) or frames
    path.write_bytes(encode(frames, FORMATS[path.suffix], 10, facts))


def test_what_differs_is_counted_over_all_frames(ldmrt: Any, bundle: Path) -> None:
    def other(facts: Any, frames: Any) -> None:
        facts["made"]["bundle_sha256"] = "0" * 64
        frames[2] = frames[2].copy()
        frames[2][0, 0, 0] ^= 1

    drawn(ldmrt, bundle, "a.webp")
    rewritten(ldmrt, Path("a.webp"), other)
    ran = ldmrt("replay", "a.webp", "--bundle", bundle)
    assert (ran.code, "bundle_sha256" in ran.out) == (1, True), ran.err
    # one bit of one byte: the mean square is 1 / 2304
    assert "not identical: 3 frames of 16x16, 1 of 2304 bytes of pixels differ, PSNR 81.8 dB\n" in ran.out


def fewer(facts: Any, frames: Any) -> Any:
    return frames[:2]


def smaller(facts: Any, frames: Any) -> Any:
    return [frame[:8] for frame in frames]


def one_frame(facts: Any, frames: Any) -> None:
    facts["frames"] = 1


def endless(facts: Any, frames: Any) -> None:
    facts["frames"] = 10**9


def odd_speed(facts: Any, frames: Any) -> None:
    facts["fps"] = "fast"


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


@pytest.mark.parametrize("suffix", ["webp", "mp4"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fewer, "has another number of frames than its record; expected 3; found 2"),
        (smaller, "has another size than its record; expected 16x16; found 16x8"),
        (one_frame, "has a damaged record; expected as ldmrt wrote it; found 1 frames, 10.0 a second"),
        (endless, "has a damaged record; expected as ldmrt wrote it; found 1000000000 frames"),
        (odd_speed, "has a damaged record"),
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
    for suffix in ("webp", "mp4"):
        words = [str(bundle), *PROMPTS, "--seeds", "3,5", "--frames", "3", "--fps", "10", "--steps", "2"]
        CliRunner().invoke(cli, ["interpolate", *words, "-o", str(folder / f"a.{suffix}")], catch_exceptions=False)
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
    assert (ran.code, "a.png has a damaged record" in ran.error, "3 frames in a PNG" in ran.error) == (2, True, True)


@pytest.mark.parametrize("suffix", ["gif", "webp", "mp4"])
def test_a_file_that_was_cut(ldmrt: Any, bundle: Path, suffix: str) -> None:
    drawn(ldmrt, bundle, f"a.{suffix}")
    whole = Path(f"a.{suffix}").read_bytes()
    for share in (0.5, 0.9, 0.99):
        Path(f"a.{suffix}").write_bytes(whole[: int(len(whole) * share)])
        assert ldmrt("replay", f"a.{suffix}", "--bundle", bundle).code in (1, 2)
    shutil.rmtree("frames")
