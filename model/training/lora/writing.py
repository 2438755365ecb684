"""Write low-rank pairs in the names of diffusers and PEFT, or of kohya's scripts."""

import json
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.lora.names import flat
from ldmrt.runtime.files.writing import write_atomically

from .pairs import Pairs

FORMATS = ("diffusers", "kohya")
# Text encoders of kohya's files: of a model with one, and of one with two
ALONE = {"text_encoder": "lora_te_text_model_"}
BOTH = {"text_encoder": "lora_te1_text_model_", "text_encoder_2": "lora_te2_text_model_"}


def write(pairs: Pairs, path: Path, form: str = "diffusers") -> None:
    """Write pairs as a safetensors file, replaced at once.

    Args:
        pairs: The pairs; their factors are written in float32.
        path: The file.
        form: One of `FORMATS`. diffusers' names have alpha in the file's notes, kohya's beside each pair.

    Raises:
        LdmrtError: The format is unknown.
    """
    if form not in FORMATS:
        raise LdmrtError("train", "unknown format of a LoRA", expected=" or ".join(FORMATS), found=form)
    # one note: safetensors writes several in an order that changes from file to file
    if form == "diffusers":
        content = save(_diffusers(pairs), {"lora_adapter_metadata": _notes(pairs)})
    else:
        content = save(_kohya(pairs), {"format": "pt"})
    with write_atomically(path) as file:
        file.write(content)


def _diffusers(pairs: Pairs) -> dict[str, Tensor]:
    """Name the factors as `save_lora_weights` does."""
    tensors = {}
    for (component, module), (down, up) in pairs.factors().items():
        tensors[f"{component}.{module}.lora_A.weight"] = down.float().cpu().contiguous()
        tensors[f"{component}.{module}.lora_B.weight"] = up.float().cpu().contiguous()
    return tensors


def _notes(pairs: Pairs) -> str:
    """Write what PEFT notes of each network's config."""
    targets: dict[str, list[str]] = {}
    for component, module in pairs.places.values():
        targets.setdefault(component, []).append(module)
    notes: dict[str, object] = {}
    for component, modules in targets.items():
        values = {"r": pairs.config.rank, "lora_alpha": pairs.config.alpha, "target_modules": modules}
        notes |= {f"{component}.{key}": value for key, value in values.items()}
    return json.dumps(notes, indent=2, sort_keys=True)


def _kohya(pairs: Pairs) -> dict[str, Tensor]:
    """Name the factors as kohya's scripts do, with an alpha for each pair."""
    both = any(component == "text_encoder_2" for component, _ in pairs.places.values())
    prefixes = {"unet": "lora_unet_"} | (BOTH if both else ALONE)
    tensors = {}
    for (component, module), (down, up) in pairs.factors().items():
        name = prefixes[component] + flat(module)
        tensors[f"{name}.lora_down.weight"] = down.float().cpu().contiguous()
        tensors[f"{name}.lora_up.weight"] = up.float().cpu().contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(pairs.config.alpha))
    return tensors
