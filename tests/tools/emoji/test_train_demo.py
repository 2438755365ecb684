"""The recipe of a model as emoji64 runs to its end, here with few steps, and goes on where it was stopped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldmrt.tools.emoji.ship import ship

from ...support.emoji_packages import sprite_set

ROOT = Path(__file__).parents[3]
# In the place of `ldmrt`: the same command on other images and for few steps, as options that are repeated win.
STAND_IN = """#!{python}
import sys
from ldmrt.tools.cli import main
words = sys.argv[1:]
if words[:1] == ["train"]:
    words = [{{"animals-nature": "food", "food-drink": "sky"}}.get(word, word) for word in words]
    fewer = ["--vocabulary", "600"] if words[1] == "ldm" else []
    sys.argv[1:] = [*words, "--data", {data!r}, "--steps", "2", "--batch", "2", "--warmup", "0", *fewer]
    main()
"""


def test_weights_are_stored_as_float16(tmp_path: Path) -> None:
    checkpoint, out = tmp_path / "ldm", tmp_path / "out"
    weights = {"a": torch.tensor([1 / 3, 1e-9]), "positions": torch.arange(3)}
    for part in ("scheduler", "text_encoder", "tokenizer", "unet", "vae", "training"):
        (checkpoint / part).mkdir(parents=True)
        save_file(weights, checkpoint / part / "model.safetensors")
    (checkpoint / "model_index.json").write_text("{}")
    (checkpoint / "text_encoder/config.json").write_text('{"dtype": "float32"}')
    (out / "unet").mkdir(parents=True)
    (out / "unet/old.safetensors").write_text("old")
    (out / "README.md").write_text("kept")
    ship(checkpoint, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae"
    ]  # fmt: skip
    assert [path.name for path in (out / "unet").iterdir()] == ["model.safetensors"]
    stored = load_file(out / "unet/model.safetensors")
    assert torch.equal(stored["a"], weights["a"].half())
    assert torch.equal(stored["positions"], weights["positions"])
    assert (out / "text_encoder/config.json").read_text() == '{"dtype": "float16"}'


@pytest.mark.slow
def test_the_recipe_of_the_demo(tmp_path: Path) -> None:
    (tmp_path / "emoji").mkdir()
    sprite_set(tmp_path / "emoji")
    stand_in = tmp_path / "bin/ldmrt"
    stand_in.parent.mkdir()
    stand_in.write_text(STAND_IN.format(python=sys.executable, data=str(tmp_path / "emoji")))
    stand_in.chmod(0o755)
    path = os.pathsep.join([str(stand_in.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    out = tmp_path / "demo"
    for _ in range(2):  # the second time each training goes on after its last step
        ran = subprocess.run(
            ["bash", ROOT / "tools/train_demo.sh", out],
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
    drawn = load_file(out / "emoji64/unet/diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in drawn.values()} == {torch.float16}
