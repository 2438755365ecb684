"""Every command of the README and of the pages in docs runs; trainings on fewer steps."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from ldmrt.runtime.backends.openvino.devices import precisions
from ldmrt.tools import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ELSEWHERE = {"samplers.md", "learn.md", "serving.md", "ray.md", "triton.md"}  # which have tests of their own
# pages of docs/training with commands, each of which may use what earlier ones made
TRAINING = ["training", "processes", "autoencoder", "finetune", "conditions", "scores"]


def commands_of(text: str) -> list[list[str]]:
    """The commands of a page, in their order."""
    return [shlex.split(line) for line in re.findall(r"^(?:    |- run: )(ldmrt .*)$", text, re.MULTILINE)]


TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name not in ELSEWHERE)
COMMANDS = commands_of(TEXT)
SHORTER = {"autoencoder": "--steps 4 --batch 2", "ldm": "--steps 4 --batch 4", "upscaler": "--steps 4 --batch 2",
           "unconditional": "--steps 2 --batch 2",
           "finetune": "--steps 2 --batch 2", "lora": "--steps 2 --batch 2",
           "inpaint": "--steps 2 --batch 2 --previews 1", "upscale": "--steps 2 --batch 2 --previews 1",
           "classes": "--steps 2 --batch 2",
           "runs/ae/recipe.toml": "--steps 4 --batch 2",
           "export": "--no-verify",  # minutes, on networks of a few steps
           "evaluate": "--prompts 2 --steps 2"}  # fmt: skip
FEWER = {"interpolate": "--frames 4", "bench": "--pictures 1 --steps 8"}  # of the shipped model's walk
TRAINS = ("data", "train", "evaluate")


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


LEARNING = [
    words for name in TRAINING for words in commands_of((ROOT / f"docs/training/{name}.md").read_text(encoding="utf-8"))
]

EMOJI = ["ldmrt", "data", "emoji", "data/emoji"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the checkout, without what earlier commands left in it."""
    for name in ("model", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first command of docs/training makes, once for the tests of this file. Do not write into it."""
    folder = tmp_path_factory.mktemp("emoji")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert run(EMOJI, patched) == 0
    return folder / EMOJI[-1]


def write_style(path: Path) -> None:
    """Write a LoRA of one layer of the shipped model."""
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q"
    factors = {part: np.full(shape, 0.02, np.float32) for part, shape in {"up": (192, 4), "down": (4, 192)}.items()}
    save_file({f"{layer}.lora_{part}.weight": factor for part, factor in factors.items()}, path)


@pytest.mark.slow(minutes=3)  # CI's demo walks the same way
def test_walk_of_the_shipped_model(place: Path, monkeypatch: pytest.MonkeyPatch, shared_exports: None) -> None:
    write_style(place / "style.safetensors")
    if reads_upscale_models := find_spec("spandrel") is not None:
        from ..support.families.upscale_models import compact

        torch.save(compact().state_dict(), place / "4x-UltraSharp.pth")
    commands = list({" ".join(words): words for words in COMMANDS if words not in LEARNING}.values())
    # exports come first, and what starts from another command's image last
    commands.sort(key=lambda words: (words[1] != "export", "--image" in words or words[1] == "upscale"))
    names = "batch bench build demo engines export generate info inspect interpolate plan replay samplers sweep upscale"
    assert sorted({words[1] for words in commands}) == [*names.split(), "verify"]
    for words in commands:
        if words[1] == "demo" or (words[1] == "build" and find_spec("tensorrt_rtx") is None):
            continue  # the demo is run by tools/demo.sh in CI
        if not reads_upscale_models and any("4x-UltraSharp" in word for word in words):
            continue
        refused = "bf16" in words and "bf16" not in precisions("CPU")
        assert run([*words, *FEWER.get(words[1], "").split()], monkeypatch) == (2 if refused else 0), words
    assert Image.open(place / "out/apple-03.png").size == (64, 64)
    assert Image.open(place / "out/samplers.png").size == Image.open(ROOT / "docs/images/samplers.png").size

    names: dict = {}
    for snippet in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(snippet, names)
    assert names["result"].pixels.shape == (1, 64, 64, 3)


@pytest.mark.slow(minutes=5)
def test_walk_from_packages_to_scores(
    place: Path, emoji: Path, monkeypatch: pytest.MonkeyPatch, small_networks: None, shared_exports: None
) -> None:
    """On networks of a few levels: those of full size are the shipped models, which the walk above exports."""
    assert [words for words in COMMANDS if words[1] in TRAINS and words not in LEARNING] == []
    assert LEARNING[0] == EMOJI
    (place / "data").mkdir()
    (place / "data/emoji").symlink_to(emoji)
    for words in LEARNING[1:]:
        extra = [option for word in words[1:3] for option in SHORTER.get(word, "").split()]
        if "--measure" in words:  # of the network, which draws nothing
            extra = extra[:2]
        assert run([*words, *extra], monkeypatch) == 0, words


@pytest.mark.slow(minutes=5)
def test_scores_of_the_shipped_model(
    place: Path,
    emoji: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shared_exports: None,
) -> None:
    """The scores that the model must have, on 50 prompts: it has .98 of identity and .99 of background on 300."""
    import json

    (place / "data").mkdir()
    (place / "data/emoji").symlink_to(emoji)
    assert run(["ldmrt", "export", "model/pretrained/emoji64", "out/emoji64", "--no-verify"], monkeypatch) == 0
    capsys.readouterr()
    words = "ldmrt evaluate out/emoji64 --data data/emoji --group animals-nature --group food-drink --prompts 50 --json"
    assert run(words.split(), monkeypatch) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["trained pairs"]["identity"] >= 0.90
    assert scores["held-out pairs"]["identity"] >= 0.80
    assert scores["trained pairs"]["background"] >= 0.97
    assert scores["trained pairs, shuffled prompts"]["identity"] <= 0.05
    assert scores["autoencoder"]["psnr"] >= 25


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []
