"""`ldmrt demo` on tiny checkpoints in the place of the shipped ones.

tests/tools/test_packaging.py runs it on the shipped ones, from a wheel.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldmrt.tools.commands import demo

from ...export.bundle.test_pixel_upscaler import save

PROMPTS = ["a red apple, noto style, blue background", "two pears", "a penguin"]
SHIPPED, ALL = (demo.CHECKPOINT, demo.UPSCALER), demo.PROMPTS


@pytest.fixture
def place(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which the demo is of tiny models, of three prompts and of two steps."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(demo, "CHECKPOINT", checkpoint)
    monkeypatch.setattr(demo, "UPSCALER", tmp_path / "upscaler")  # made where it is needed
    monkeypatch.setattr(demo, "PROMPTS", tmp_path / "prompts.txt")
    monkeypatch.setattr(demo, "DRAWING", ("--seed", "1", "--columns", "3", "--steps", "2"))
    monkeypatch.setattr(demo, "ENLARGING", ("--steps", "base=2,upscale=1"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_shipped() -> None:
    assert all((checkpoint / "model_index.json").is_file() for checkpoint in SHIPPED)
    prompts = ALL.read_text(encoding="utf-8").splitlines()
    assert len(set(prompts)) == 24
    assert all(", noto style, " in prompt and prompt.endswith(" background") for prompt in prompts)


@pytest.mark.slow
def test_exports_verifies_and_draws(
    ldmrt: Any, place: Path, checkpoint: Path, shared_exports: None, tmp_path: Path
) -> None:
    save(tmp_path / "upscaler")
    ran = ldmrt("demo")
    assert ran.code == 0, ran.err
    assert ran.out.split("\n")[0] == "the images: demo.png, and one by one demo/each-00.png to demo/each-02.png"
    steps = [line for line in ran.err.splitlines() if line.startswith("$ ")]
    assert steps[:3] == [
        f"$ ldmrt export {checkpoint} emoji128",
        f"$ ldmrt export {tmp_path / 'upscaler'} emoji128 --stage upscale",
        "$ ldmrt verify emoji128",
    ]
    assert steps[3].startswith(f"$ ldmrt generate emoji128 '{PROMPTS[0]}' --seed 1 --columns 3")
    assert steps[3].endswith("# and 2 more prompts")
    assert len(steps) == 4
    assert names(place) == ["demo", "demo.png", "emoji128"]
    assert names(place / "demo") == ["each-00.png", "each-01.png", "each-02.png"]
    with Image.open(place / "demo.png") as image:
        assert image.size == (3 * 32 + 2 * 2, 32)
        assert json.loads(image.text["ldmrt"])["prompts"] == PROMPTS


def test_a_second_run_reuses_the_bundle_and_needs_no_torch(
    ldmrt: Any, place: Path, certified: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("torch", "transformers", "onnx"):
        monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]
    ran = ldmrt("demo", "--bundle", certified, "-o", "out/grid.webp")
    assert ran.code == 0, ran.err
    assert f"{certified} has no stage upscale, so images are not enlarged; next: ldmrt export" in ran.err
    assert f"{certified} exists: the export is skipped" in ran.err
    assert "$ ldmrt export" not in ran.err
    assert names(place / "out") == ["grid", "grid.webp"]
    assert names(place / "out" / "grid") == ["each-00.webp", "each-01.webp", "each-02.webp"]


def test_images_are_replaced_only_when_asked(ldmrt: Any, place: Path, certified: Path) -> None:
    (place / "demo.png").write_text("mine")
    assert ldmrt("demo", "--bundle", certified).out.startswith("the images: demo_2.png, ")
    assert (place / "demo.png").read_text() == "mine"
    assert names(place) == ["demo.png", "demo_2", "demo_2.png"]
    assert ldmrt("demo", "--bundle", certified, "--overwrite").out.startswith("the images: demo.png, ")
    assert (place / "demo.png").read_bytes() == (place / "demo_2.png").read_bytes()


@pytest.mark.parametrize("package", ["torch", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_extra(
    ldmrt: Any, place: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]
    ran = ldmrt("demo")
    assert ran.error.endswith(" is not installed")
    assert "\n  try: pip install 'ldmrt[demo]'" in ran.err
    assert names(place) == []


def test_a_bundle_without_a_certificate_is_drawn_with(ldmrt: Any, place: Path, bundle: Path) -> None:
    ran = ldmrt("demo", "--bundle", bundle)
    assert ran.code == 0, ran.err
    assert f"not verified: {bundle} has no certificate; next: ldmrt verify {bundle} --against" in ran.err
    assert (place / "demo.png").is_file()


def test_a_damaged_bundle_says_what_to_do(ldmrt: Any, place: Path, certified: Path) -> None:
    damaged = Path(shutil.copytree(certified, place / "damaged"))
    (damaged / "unet" / "model.onnx").write_bytes(b"damaged")
    ran = ldmrt("demo", "--bundle", "damaged")
    assert "unet/model.onnx" in ran.error
    assert "try: remove damaged, or name another folder with --bundle" in ran.err
    assert names(place) == ["damaged"]


@pytest.mark.parametrize(
    ("words", "message"), [(("-o", "demo.bmp"), "invalid --out"), (("--bundle", "file"), "a file of that name")]
)
def test_bad_places_are_refused_before_any_work(ldmrt: Any, place: Path, words: tuple[str, ...], message: str) -> None:
    (place / "file").touch()
    assert message in ldmrt("demo", *words).error
    assert names(place) == ["file"]
