"""Images that an upscale model enlarged keep what their files said, and `ldmrt replay` enlarges them again."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ...tools.conftest import command

if find_spec("spandrel") is None:
    pytest.skip("spandrel is not installed", allow_module_level=True)

from ...support.families.upscale_models import compact


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a network of scale 4."""
    folder = tmp_path_factory.mktemp("models")
    torch.save({"params": compact().state_dict()}, folder / "compact.pth")
    assert command("export", folder / "compact.pth", folder / "compact", "--no-verify") == 0
    return folder / "compact"


def test_what_was_drawn_stays_in_the_enlarged_image(
    made: Path, bundle: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("generate", bundle, "two pears", "--steps", 2, "--seed", 3, "-o", "in.png") == 0
    assert command("upscale", made, "in.png", "-o", "once.png") == 0
    assert command("upscale", made, "once.png", "-o", "twice.png") == 0
    drawn, once, twice = (Image.open(f"{name}.png").info for name in ("in", "once", "twice"))
    assert drawn["parameters"] == once["parameters"] == twice["parameters"]
    assert once["postprocessing"] == once["extras"] == "Postprocess upscale by: 4, Postprocess upscaler: compact"
    said = json.loads(twice["ldmrt"])
    assert said["source"] == json.loads(once["ldmrt"])
    assert said["source"]["source"] == json.loads(drawn["ldmrt"])
    capsys.readouterr()
    assert command("info", "--json", "twice.png") == 0
    (shown,) = json.loads(capsys.readouterr().out)
    wanted = {"seed": 3, "steps": 2, "width": 256, "height": 256, "model": bundle.name, "upscaler": "compact"}
    assert shown["prompt"] == "two pears"
    assert {name: shown["settings"][name] for name in wanted} == wanted
    assert command("replay", "twice.png", "--bundle", made) == 0

    shutil.copytree(made, "compact")  # other weights of the same name and layout
    torch.save({"params": {name: weight * 0.9 for name, weight in compact().state_dict().items()}}, "compact.pth")
    assert command("export", "compact.pth", "other/compact", "--no-verify") == 0
    capsys.readouterr()
    assert command("replay", "once.png", "--bundle", "other/compact") == 1
    assert "differs" in capsys.readouterr().out  # a table, of the hash alone
    assert command("replay", "once.png") == 0  # its bundle is found by its name
    Path("in.png").rename("gone.png")
    capsys.readouterr()
    assert command("replay", "once.png") == 2
    assert "in.png is gone, which the image was drawn from" in capsys.readouterr().err
    Image.new("RGB", (16, 16)).save("in.png")
    assert command("replay", "once.png") == 2
    assert "in.png is not the file that the image was drawn from" in capsys.readouterr().err


def test_a_text_of_the_web_ui_stays_and_damaged_records_are_refused(made: Path, tmp_path: Path, capsys: Any) -> None:
    text, given = PngInfo(), tmp_path / "in.png"
    text.add_text("parameters", "a fox\nNegative prompt: blurred\nSteps: 20, Sampler: Euler a, Seed: 5, Model: v1")
    text.add_text("ldmrt", '{"prompt": "\\ud800"}')  # half a character, which cannot be written again
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)).save(given, pnginfo=text)
    for suffix in (".png", ".jpg", ".webp"):
        assert command("upscale", made, given, "-o", tmp_path / f"out{suffix}") == 0
        capsys.readouterr()
        assert command("info", "--json", tmp_path / f"out{suffix}") == 0
        (shown,) = json.loads(capsys.readouterr().out)
        assert (shown["prompt"], shown["negative_prompt"], shown["program"]) == ("a fox", "blurred", "ldmrt")
        assert (shown["settings"]["seed"], shown["settings"]["model"], shown["settings"]["width"]) == (5, "v1", 32)
    with Image.open(tmp_path / "out.png") as image:
        facts, pixels = json.loads(image.info["ldmrt"]), image.copy()
    assert "source" not in facts
    for change, error in (
        ({"made": None}, "lacks the record to enlarge it by"),
        ({"opening": {"tile": "256"}}, "enlarged with tile '256'"),
        ({"opening": {"tile": 10**9}}, "tiles of this size cannot be laid out"),
        ({"inputs": {"image": []}}, "is gone, which the image was drawn from"),
    ):
        odd, text = {**facts, "made": {**facts["made"], **change} if "made" not in change else None}, PngInfo()
        text.add_itxt("ldmrt", json.dumps(odd))
        pixels.save(tmp_path / "odd.png", pnginfo=text)
        assert command("replay", tmp_path / "odd.png", "--bundle", made) == 2
        assert error in capsys.readouterr().err
    text = PngInfo()
    text.add_itxt("ldmrt", json.dumps(facts))
    pixels.crop((0, 0, 9, 9)).save(tmp_path / "odd.png", pnginfo=text)
    assert command("replay", tmp_path / "odd.png", "--bundle", made) == 2
    assert "has another size than what is enlarged now" in capsys.readouterr().err
