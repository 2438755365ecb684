"""`ldmrt generate`: pictures that tell how they were made, and one clear message where none can be."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import ldmrt.runtime
from ldmrt.runtime.pipeline.request.field_names import from_short
from ldmrt.tools.console.drawing.images import grid

PROMPT = "a red apple, noto style, blue background"


def opened(path: Path) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """A PNG and its parameters."""
    with Image.open(path) as image:
        return np.asarray(image), json.loads(image.text["ldmrt"])


def again(bundle: Path, notes: dict[str, Any]) -> NDArray[np.uint8]:
    """The picture that its own parameters give."""
    names = ("negative_prompt", "steps", "guidance", "scheduler", "eta", "width", "height", "seed")
    pipeline = ldmrt.runtime.open(bundle)
    picture = pipeline(notes["prompt"], **from_short({name: notes[name] for name in names})).pixels[0]
    pipeline.close()
    return picture


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--scheduler", "dpmpp_2m", "--seed", "7"],
         {"scheduler": "dpmpp_2m", "seed": 7, "eta": None, "guidance": 5.0}),
        (["--scheduler", "ddim", "--eta", "0.5", "--negative", "two pears", "--width", "24", "--guidance", "2.5"],
         {"eta": 0.5, "negative_prompt": "two pears", "width": 24, "height": 16, "guidance": 2.5}),
        pytest.param([], {"steps": 3}),  # the bundle's own scheduler, noted by a name that is not taken
    ],
)  # fmt: skip
def test_picture_can_be_made_again_from_its_notes(
    ldmrt: Any, bundle: Path, tmp_path: Path, options: list[str], expected: dict[str, Any]
) -> None:
    out = tmp_path / "new" / "apple.png"
    ran = ldmrt("generate", bundle, PROMPT, "--steps", 3, "-o", out, *options)
    assert (ran.code, ran.out) == (0, f"{out}\n")
    assert [path.name for path in out.parent.iterdir()] == ["apple.png"]
    picture, notes = opened(out)
    assert {**notes, "bundle": bundle.name, "prompt": PROMPT, "steps": 3, **expected} == notes
    np.testing.assert_array_equal(picture, again(bundle, notes))


@pytest.mark.parametrize("batch", [1, 3, 4, 9])
def test_pictures_do_not_hang_on_how_many_are_drawn_at_once(
    ldmrt: Any, bundle: Path, tmp_path: Path, batch: int
) -> None:
    asked = ["generate", bundle, "a penguin", "two pears", "-n", 2, "--steps", 2, "--seed", 5, "-o"]
    for folder, options in (("whole", []), ("parts", ["--batch", batch])):
        ran = ldmrt(*asked, tmp_path / folder / "out.png", *options)
        assert ran.code == 0
        assert len(ran.out.splitlines()) == 5
    for whole in (tmp_path / "whole").iterdir():
        picture, notes = opened(tmp_path / "parts" / whole.name)
        expected, too = opened(whole)
        assert np.abs(picture.astype(int) - expected).max() <= 1  # sums may be ordered by the batch's size
        assert notes == too


def test_steps_are_of_one_batch(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    ran = ldmrt("generate", bundle, PROMPT, "--batch", 1, "--save-steps", "-o", tmp_path / "new" / "out.png")
    assert (ran.code, ran.out) == (2, "")
    assert "--save-steps cannot be combined with --batch; expected only one of them" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_grid_and_a_file_for_each(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    out, prompts = tmp_path / "out.png", ["a penguin", "two pears"]
    ran = ldmrt("generate", bundle, *prompts, "-n", 2, "--steps", 2, "--seed", 5, "--scheduler", "euler_a", "-o", out)
    files = [tmp_path / f"out-{i:02d}.png" for i in range(4)]
    assert (ran.code, ran.out.splitlines()) == (0, [str(path) for path in (out, *files)])
    assert sorted(tmp_path.iterdir()) == sorted([out, *files])
    pictures, notes = zip(*(opened(path) for path in files), strict=True)
    assert [(note["prompt"], note["seed"]) for note in notes] == [(prompts[i // 2], 5 + i) for i in range(4)]
    sheet, parameters = opened(out)
    np.testing.assert_array_equal(sheet, grid(np.stack(pictures), 2))
    assert (parameters["prompts"], parameters["seeds"]) == ([note["prompt"] for note in notes], [5, 6, 7, 8])
    # made in a batch of four: rounding may tip a grey level
    assert np.abs(again(bundle, notes[2]).astype(int) - pictures[2]).max() <= 1


@pytest.mark.parametrize(
    ("options", "size"), [([], (34, 34)), (["--columns", "3"], (52, 16)), (["--columns", "1"], (16, 52))]
)
def test_columns(ldmrt: Any, bundle: Path, tmp_path: Path, options: list[str], size: tuple[int, int]) -> None:
    assert ldmrt("generate", bundle, PROMPT, "-n", 3, "--steps", 1, "-o", tmp_path / "o.png", *options).code == 0
    with Image.open(tmp_path / "o.png") as image:
        assert image.size == size  # pictures of 16 with gaps of 2


def test_prompt_that_is_too_long_is_a_warning(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    prompt = f"{PROMPT}, {PROMPT}, under the last umbrella"
    ran = ldmrt("generate", bundle, prompt, "--steps", 1, "-o", tmp_path / "o.png")
    warnings = [line for line in ran.err.splitlines() if line.startswith("warning: tokenizer")]
    assert ran.code == 0
    assert len(warnings) == 1
    assert "skipped: " in warnings[0]
    assert "under the last umbrella" in warnings[0]
    assert opened(tmp_path / "o.png")[1]["prompt"] == prompt


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "-1"], "request: invalid --steps; expected at least 1; found -1"),
        (["--steps", "many"], "Invalid value for '--steps'"),
        (["--steps", "1001"], "invalid number of steps; expected 1 to 1000"),
        (["-n", "0"], "Invalid value for '-n'"),
        (["--guidance", "nan"], "invalid --guidance"),
        (["--seed", "-1"], "invalid --seed; expected 0 to 2**64 - 1; found -1"),
        (["--width", "15"], "invalid width; expected a multiple of 2; found 15"),
        (["--height", "-16"], "invalid --height"),
        (["--scheduler", "heron"], "unknown scheduler 'heron', did you mean 'heun'?; expected ddim"),
        (["--eta", "2"], "invalid --eta"),
        (["--backend", "cuda"], "no backend 'cuda'"),
        (
            ["-o", "out.gif"],
            "invalid --out; expected a file name that ends in .png, .jpg, .jpeg, .webp; found out.gif",
        ),
        (["-o", "out"], "invalid --out"),
        *(
            pytest.param(options, message)
            for options, message in (
                (["--columns", "-1", "-n", "2"], "columns"),
                (["--columns", "0", "-n", "2"], "columns"),
                (["--eta", "0.5", "--scheduler", "dpmpp_2m"], "eta"),  # it would change nothing
                (["--scheduler", ""], "unknown scheduler ''"),
                (["--negative", "\udcff"], "invalid --negative"),
                (["-o", "folder.png"], "folder.png"),
                (["-o", "file/out.png"], "file"),
            )
        ),
    ],
)
def test_bad_option(
    ldmrt: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
    ran = ldmrt("generate", bundle, PROMPT, "--steps", 1, *options)
    assert message in ran.error
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder.png"]


@pytest.mark.parametrize(
    ("file", "cut", "message"),
    [
        ("unet/model.onnx_data", slice(0, -1), "unet/model.onnx_data was cut off or changed; expected 768512 bytes"),
        ("unet/model.onnx", slice(None, None, -1), "unet/model.onnx was changed; expected sha256"),
        ("ldmrt.json", slice(0, 99), "cannot read"),
        ("vae_decoder/model.onnx", None, "missing file"),
    ],
)
def test_damaged_bundle(ldmrt: Any, bundle: Path, tmp_path: Path, file: str, cut: slice | None, message: str) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    content = (copy / file).read_bytes()
    (copy / file).unlink()
    if cut:
        (copy / file).write_bytes(content[cut])
    ran = ldmrt("generate", copy, PROMPT, "-o", tmp_path / "out.png")
    assert message in ran.error
    assert list(tmp_path.iterdir()) == [copy]


def test_tiles_and_low_memory(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    out = [tmp_path / f"{i}.png" for i in range(3)]
    words = ("generate", bundle, PROMPT, "--steps", 2, "--width", 32, "--height", 24)
    for path, options in zip(out, ([], ["--low-memory"], ["--tile", 16]), strict=True):
        assert ldmrt(*words, *options, "-o", path).code == 0
    whole, low, tiled = map(opened, out)
    np.testing.assert_array_equal(whole[0], low[0])
    assert "tile" not in whole[1] | low[1]
    assert tiled[1]["tile"] == 16
    assert not np.array_equal(whole[0], tiled[0])
    assert "invalid tile; expected a multiple of 2, at least 8; found 7" in ldmrt(*words, "--tile", 7).error
    assert "invalid on_overflow; expected stop or retry; found x" in ldmrt(*words, "--on-overflow", "x").error
