"""Images and captions that vary from sample to sample: options of every training, and of `ldmrt data check`."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldmrt.tools.commands.training.train import train

from ....support.emoji_packages import sprite_set
from ....support.image_files import encoded

UNET = Path("unet") / "diffusion_pytorch_model.safetensors"
VARIED = {
    "--flip": (), "--random-crop": (), "--shuffle-tags": (), "--prefix": ("sks",), "--wildcards": (),
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Wide images, whose captions are tags with alternatives."""
    folder = tmp_path / "images"
    folder.mkdir()
    rows = []
    for i in range(4):
        (folder / f"{i}.png").write_bytes(encoded(i, (90, 70)))
        rows.append(json.dumps({"file_name": f"{i}.png", "text": f"{{a|one}} thing, on the left, number {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def words(task: str, folder: Path, out: Path, *more: object, steps: int = 1) -> list[object]:
    return ["train", task, "--data", folder, "--out", out, "--steps", steps, "--batch", 2, "--warmup", 1, *more]


@pytest.mark.slow(minutes=0.18)
def test_a_varied_run_resumes_exactly_and_names_what_it_lost(ldmrt: Any, folder: Path, tmp_path: Path) -> None:
    assert ldmrt(*words("autoencoder", folder, tmp_path / "ae")).code == 0
    options = [word for name, values in VARIED.items() for word in (name, *values)] + ["--keep-tags", 1]
    given = ("--autoencoder", tmp_path / "ae", "--schedule", "constant", "--validation", 0.3)
    for out, steps in (("whole", (4,)), ("halves", (2, 4)), ("plain", ())):
        for part, count in enumerate(steps):
            ran = ldmrt(*words("ldm", folder, tmp_path / out, *given, *options, *["--resume"] * part, steps=count))
            assert ran.code == 0, ran.err
    assert (tmp_path / "whole" / UNET).read_bytes() == (tmp_path / "halves" / UNET).read_bytes()
    assert ldmrt(*words("ldm", folder, tmp_path / "plain", *given, steps=4)).code == 0
    assert (tmp_path / "whole" / UNET).read_bytes() != (tmp_path / "plain" / UNET).read_bytes()
    for name, values in VARIED.items():
        lost = [word for other, more in VARIED.items() if other != name for word in (other, *more)]
        lost += ["--keep-tags", 1] if name != "--shuffle-tags" else []
        ran = ldmrt(*words("ldm", folder, tmp_path / "whole", *given, *lost, "--resume", steps=5))
        assert f"trained with another {name}" in ran.error, (name, values)


@pytest.mark.parametrize("name", list(train.commands))
def test_every_training_compares_the_options(name: str) -> None:
    """What a state says of its data also holds the options that samples depend on."""
    module = inspect.getsource(inspect.getmodule(inspect.unwrap(train.commands[name].callback)))
    assert "options.shaped" in module or "Base.open(options" in module  # whose `about` has them


def test_options_that_need_another_are_refused(ldmrt: Any, folder: Path, tmp_path: Path) -> None:
    assert ldmrt(*words("autoencoder", folder, tmp_path / "ae")).code == 0
    ran = ldmrt(*words("ldm", folder, tmp_path / "out", "--autoencoder", tmp_path / "ae", "--keep-tags", 1))
    assert "--keep-tags needs --shuffle-tags" in ran.error
    assert "images checked" not in ran.err
    assert not (tmp_path / "out" / "training").exists()


@pytest.mark.parametrize("name", ["autoencoder", "classes", "unconditional", "upscaler"])
def test_trainings_without_texts_do_not_change_captions(name: str) -> None:
    options = {word for option in train.commands[name].params for word in option.opts}
    assert "--flip" in options
    assert not options & {"--prefix", "--shuffle-tags", "--keep-tags", "--wildcards"}


@pytest.mark.parametrize(
    "option", [("--flip",), ("--prefix", "x"), ("--empty", "allow"), ("--max-upscale", 3), ("--buckets",)]
)
def test_emoji_are_refused_what_is_for_other_images(
    option: tuple[object, ...], ldmrt: Any, folder: Path, tmp_path: Path
) -> None:
    assert ldmrt(*words("autoencoder", folder, tmp_path / "ae")).code == 0
    (tmp_path / "sprites").mkdir()
    sprites = sprite_set(tmp_path / "sprites")
    ran = ldmrt(*words("ldm", sprites, tmp_path / "out", "--autoencoder", tmp_path / "ae", *option))
    assert f"{option[0]} is for images of your own" in ran.error


def test_check_lists_captions_that_mirroring_makes_wrong(ldmrt: Any, folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(
        "\n".join(json.dumps({"file_name": "0.png", "text": text}) for text in ("a cat", "on the Left", "brightly"))
    )
    ran = ldmrt("data", "check", folder, "--flip")
    assert ran.out.splitlines()[1:] == ["1 captions say left or right", "  line 2: 0.png: on the Left"]


def test_check_prints_the_shapes(ldmrt: Any, folder: Path) -> None:
    for i, size in enumerate(((64, 64), (90, 50), (80, 50), (99, 60))):
        Image.new("L", size).save(folder / f"{i}.png")
    ran = ldmrt("data", "check", folder, "--size", 64, "--buckets", "--unit", 16)
    assert [line.split() for line in ran.out.splitlines()[1:]] == [
        ["64", "x", "64", "1", "image"], ["80", "x", "48", "3", "images"],
    ]  # fmt: skip


def test_check_counts_an_epoch(ldmrt: Any, tmp_path: Path) -> None:
    (tmp_path / "3_cat").mkdir()
    (tmp_path / "3_cat" / "a.png").write_bytes(encoded(0, (64, 64)))
    ran = ldmrt("data", "check", tmp_path)
    assert ran.out == f"{tmp_path}: 1 captioned images can be used, 3 in an epoch\n"


def test_how_often_images_may_be_enlarged(ldmrt: Any, folder: Path, tmp_path: Path) -> None:
    assert ldmrt("data", "check", folder, "--size", 140).code == 0
    found = ldmrt("data", "check", folder, "--size", 141).err
    assert "0.png is 70 pixels along its shorter side, which --size 141 enlarges more than 2 times" in found
    assert ldmrt("data", "check", folder, "--size", 280, "--max-upscale", 4).code == 0
    assert "enlarges more than 1 times" in ldmrt("data", "check", folder, "--size", 71, "--max-upscale", 1).err
    Image.new("L", (40, 40)).save(folder / "0.png")
    given = ("--on-small", "skip", "--schedule", "constant", "--resume")
    out = tmp_path / "out"
    assert ldmrt(*words("autoencoder", folder, out, *given[:-1])).code == 0
    ran = ldmrt(*words("autoencoder", folder, out, *given, "--max-upscale", 1.5, steps=2))
    assert "trained with another --max-upscale; expected None; found 1.5" in ran.error


@pytest.mark.parametrize("source", ["metadata", "text", "none"])
def test_empty_captions_are_allowed_where_asked(source: str, ldmrt: Any, folder: Path) -> None:
    if source == "metadata":
        (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": ""}')
    else:
        (folder / "metadata.jsonl").unlink()
    if source == "text":
        for i in range(4):
            (folder / f"{i}.txt").write_text("\n")
    assert ldmrt("data", "check", folder).code == 2
    assert ldmrt("data", "check", folder, "--empty", "allow").code == 0
    if source == "metadata":
        (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": null}')
        assert "text of 0.png is null" in ldmrt("data", "check", folder, "--empty", "allow").error


@pytest.mark.slow(minutes=0.08)
def test_captions_that_are_too_long_are_counted_once(
    ldmrt: Any, folder: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    rows = [{"file_name": f"{i}.png", "text": "many words " * 40 * (i % 2) + f"number {i}"} for i in range(4)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert ldmrt(*words("autoencoder", folder, tmp_path / "ae")).code == 0
    ran = ldmrt(*words("ldm", folder, tmp_path / "out", "--autoencoder", tmp_path / "ae", steps=2))
    assert ran.code == 0, ran.err
    assert ran.err.count("2 of 4 captions have more than") == 1
    assert "skipped: " not in ran.err
    assert not [warning for warning in recwarn if "tokens" in str(warning.message)]
