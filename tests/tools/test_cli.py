"""The command line as a whole: help, exit codes, and the commands that look at a bundle."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ldmrt.tools.cli import COMMANDS

ALL = [
    *((name,) for name in COMMANDS),
    ("data", "emoji"),
    ("engines", "list"),
    ("engines", "prune"),
    ("train", "autoencoder"),
    ("train", "ldm"),
]
LIGHT = [words for words in ALL if words[0] not in ("train", "evaluate")]  # which compute in their own files
HEAVY = {"torch", "transformers", "onnxruntime", "onnx", "tokenizers"}
LOADED = """
import json, sys
from ldmrt.tools.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["ldmrt", *words]
    try:
        main()
    except SystemExit as left:
        assert not left.code, words
print(json.dumps([name for name in sys.modules if "." not in name]))
"""


def weights(checkpoint: Path, change: Callable[[dict[str, Any]], Any], component: str = "vae") -> None:
    """Change the weights of a copied checkpoint."""
    path = checkpoint / component / "diffusion_pytorch_model.safetensors"
    state = {name: value.copy() for name, value in load_file(path).items()}
    change(state)
    save_file(state, path, {"format": "pt"})


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


def test_entry_point() -> None:
    ran = subprocess.run([sys.executable, "-m", "ldmrt.tools.cli", "generate", "nowhere", "a cat"],
                         capture_output=True, text=True)  # fmt: skip
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.splitlines() == ["error: bundle: no directory nowhere", "  try: ldmrt export CHECKPOINT nowhere"]


def test_version(ldmrt: Any) -> None:
    ran = ldmrt("--version")
    assert (ran.code, ran.out.split()[-1]) == (0, importlib.metadata.version("ldmrt"))


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_has_an_example(ldmrt: Any, words: tuple[str, ...]) -> None:
    ran = ldmrt(*words, "--help")
    assert ran.code == 0
    assert f"Example: ldmrt {words[0]} " in " ".join(ran.out.split())
    assert ran.out == ldmrt(*words, "-h").out


def test_help_names_every_command(ldmrt: Any) -> None:
    ran = ldmrt("--help")
    assert all(f"\n  {name}" in ran.out and text in ran.out for name, text in COMMANDS.items())


@pytest.mark.parametrize(
    ("lines", "unwanted"),
    [
        ([["--help"], ["--version"], *([*w, "--help"] for w in LIGHT)], HEAVY | {"PIL", "rich", "numpy"}),
        ([[*w, "--help"] for w in ALL], HEAVY),
    ],
)
def test_help_loads_nothing_heavy(lines: list[list[str]], unwanted: set[str]) -> None:
    command = [sys.executable, "-c", LOADED, json.dumps(lines)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not unwanted & set(json.loads(ran.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["generate"], "Missing argument 'BUNDLE'"),
        (["generate", "x", "a cat", "--stepz", "3"], "No such option"),
        (["generate", "x", "a cat", "--max-sequence-length", "77"], "but ldmrt export and ldmrt verify have it."),
        (["verify", "nowhere"], "bundle: no directory nowhere"),
        (["inspect", "nowhere"], "bundle: no directory nowhere"),
        (["export", "nowhere", "out"], "checkpoint: no folder nowhere"),
        (["evaluate", "nowhere", "--data", "nowhere"], "no directory nowhere"),
    ],
)
def test_bad_words(ldmrt: Any, words: list[str], message: str) -> None:
    assert message in ldmrt(*words).error


def test_inspect(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    ran = ldmrt("inspect", bundle)
    assert ran.code == 0
    wanted = [
        *("text_encoder", "vae_encoder", "fp32", "encoder_hidden_states float32(batch, 16, 24)", "made by ldmrt"),
        "16x16 pixels, latents of 4 channels at 1/2",
        "DDIMScheduler, predicts epsilon, scaling factor 0.18215",
        "files match the manifest",
    ]
    for words in wanted:
        assert words in ran.out
    bare = Path(shutil.copytree(bundle, tmp_path / "bare"))
    (bare / "ldmrt.json").unlink()
    ran = ldmrt("inspect", bare)
    assert ran.code == 0
    assert "no manifest: nothing could be checked" in ran.out


def test_verify_a_true_bundle(ldmrt: Any, bundle: Path, checkpoint: Path) -> None:
    ran = ldmrt("verify", bundle, "--against", checkpoint)
    assert ran.code == 0, ran.out + ran.err
    # tokenizer, four components, the decoder's parts and the encoder's, scaling factor, rows and the picture
    assert ran.out.count(" ok ") == 10
    assert "FAILED" not in ran.out


def test_verify_finds_a_planted_fault(ldmrt: Any, bundle: Path, copy: Path) -> None:
    def plant(state: dict[str, Any]) -> None:
        state["decoder.conv_out.bias"] += 0.01

    weights(copy, plant)
    ran = ldmrt("verify", bundle, "--against", copy)
    assert ran.code == 1
    assert "not of this checkpoint: weights of vae_decoder" in ran.err
    assert "not of this checkpoint: vae_decoder: decoder.conv_out.bias differs from the checkpoint's" in ran.err
    assert "it began with: vae_decoder" in ran.err
    # the decoder, its parts, and the picture where it moves over a grey level's edge
    assert ran.out.count("FAILED") in (2, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_export_of_a_broken_checkpoint(ldmrt: Any, copy: Path, tmp_path: Path, value: float) -> None:
    def spoil(state: dict[str, Any]) -> None:
        state["conv_in.weight"].flat[3] = value

    weights(copy, spoil, "unet")
    assert "unet: conv_in.weight in" in ldmrt("export", copy, tmp_path / "bundle").error
    assert list(tmp_path.iterdir()) == [copy]


def test_export_leaves_other_folders_alone(ldmrt: Any, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    assert "is there and is no bundle" in ldmrt("export", checkpoint, tmp_path / "mine").error
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "diary.txt"]


def test_export_to_where_nothing_can_be_written(ldmrt: Any, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "file" in ldmrt("export", checkpoint, tmp_path / "file" / "bundle").error
