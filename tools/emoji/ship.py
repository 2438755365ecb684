"""Copy a checkpoint with its weights stored as float16: `python -m ldmrt.tools.emoji.ship CHECKPOINT OUT`."""

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")


def ship(checkpoint: Path, out: Path) -> None:
    """Copy the parts of a checkpoint to a folder that is not there, or lacks parts; what else it has stays.

    Weights are rounded to float16. Integers, such as positions of tokens, stay as they are.
    """
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(checkpoint / "model_index.json", out)
    for part in PARTS:
        shutil.rmtree(out / part, ignore_errors=True)
        shutil.copytree(checkpoint / part, out / part)
        for path in (out / part).glob("*.safetensors"):
            weights = {name: halved(weight) for name, weight in load_file(path).items()}
            save_file(weights, path, metadata={"format": "pt"})
    config = out / "text_encoder" / "config.json"  # transformers loads weights in the precision that it states
    config.write_text(config.read_text().replace('"dtype": "float32"', '"dtype": "float16"'))


def halved(weight: torch.Tensor) -> torch.Tensor:
    """Round a tensor of floating-point numbers to float16; return another one as it is."""
    return weight.half() if weight.is_floating_point() else weight


if __name__ == "__main__":
    ship(Path(sys.argv[1]), Path(sys.argv[2]))
