"""A hundred damaged checkpoints: each is one LdmrtError that names what is wrong, and leaves nothing behind."""

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldmrt.model import load
from ldmrt.runtime import LdmrtError
from ldmrt.tools.cli import main

from ...support.damage.checkpoint_damage import ANY, FIELDS, FOLDER, JSON, PARTS, STEM, Damage, Target
from ...support.pipelines import save_pipeline


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of SDXL: two text encoders."""
    return save_pipeline("sdxl", tmp_path_factory.mktemp("damage") / "sdxl")


def target(seed: int, rng: random.Random, request: pytest.FixtureRequest, folder: Path) -> tuple[Target, Damage]:
    """Half of them tiny checkpoints, a sixth each SDXL, pickled weights, and single files, the last also pickled."""
    if seed % 6 < 3:
        source = shutil.copytree(request.getfixturevalue("checkpoint"), folder / "checkpoint")
        part = rng.choice(["unet", "vae", "text_encoder"])
        return Target(source, source / part / PARTS[part], None), (ANY + FOLDER)[seed // 2 % len(ANY + FOLDER)]
    if seed % 6 == 3:
        source = shutil.copytree(request.getfixturevalue("twice"), folder / "checkpoint")
        part = rng.choice(list(PARTS))
        return Target(source, source / part / PARTS[part], None), ANY[seed // 6 % len(ANY)]
    if seed % 6 == 4:
        source = shutil.copytree(request.getfixturevalue("checkpoint"), folder / "checkpoint")
        part = rng.choice(["unet", "vae", "text_encoder"])
        old = source / part / PARTS[part]
        new = old.with_name("diffusion_pytorch_model.bin" if old.name == STEM else "pytorch_model.bin")
        torch.save(load_file(old), new)
        old.unlink()
        return Target(source, new, None), ANY[seed // 6 % len(ANY)]
    state = request.getfixturevalue("content")
    source = folder / ("model.ckpt" if seed % 4 == 1 else "model.safetensors")
    torch.save(state, source) if source.suffix == ".ckpt" else save_file(state, source)
    return Target(source, source, request.getfixturevalue("vocabulary")), ANY[seed // 6 % len(ANY)]


@pytest.mark.parametrize("seed", [pytest.param(i, marks=[pytest.mark.slow] if i >= 25 else []) for i in range(100)])
def test_damage_is_named(
    seed: int, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rng = random.Random(seed)
    damaged, damage = target(seed, rng, request, tmp_path)
    named = damage(damaged, rng)
    before = set(tmp_path.rglob("*"))
    if seed % 10 == 7:  # the whole way, as a user goes it
        words = ["ldmrt", "export", str(damaged.source), str(tmp_path / "bundle")]
        words += ["--tokenizer", str(damaged.vocabulary)] if damaged.vocabulary else []
        monkeypatch.setattr(sys, "argv", words)
        capsys.readouterr()  # of diffusers, which may have saved the checkpoint just now
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 2
        said = capsys.readouterr()
        assert said.out == ""
        message = said.err
        assert message.startswith("error: ")
    else:
        with pytest.raises(LdmrtError) as caught:
            load(damaged.source, tokenizer=damaged.vocabulary)
        message = str(caught.value)
    lines = message.splitlines()
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("  try: ")), message
    assert any(name in message for name in named), (damage.__name__, named, message)
    assert set(tmp_path.rglob("*")) == before


def test_every_kind_of_damage_is_done() -> None:
    """The wrong fields are all tried below."""
    done = {(ANY + FOLDER)[seed // 2 % len(ANY + FOLDER)] for seed in range(100) if seed % 6 < 3}
    assert done == {*ANY, *FOLDER}


@pytest.mark.parametrize(("part", "field", "value", "word"), FIELDS)
def test_wrong_fields(part: str, field: str, value: Any, word: str, checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    path = folder / JSON.get(part, f"{part}/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(LdmrtError) as caught:
        load(folder)
    assert (word or field) in str(caught.value)


def test_configs_come_before_weights(checkpoint: Path, tmp_path: Path) -> None:
    """What is said of a config that asks for an unknown block does not wait for gigabytes."""
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    for path in folder.rglob("*.safetensors"):
        path.write_bytes(b"not read")
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"down_block_types": ["KDownBlock2D"] * 2}))
    with pytest.raises(LdmrtError, match="unsupported KDownBlock2D in down_block_types"):
        load(folder)
