"""Read LoRA files in the spellings that trainers write, and what each adds to a weight."""

import math
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.runtime.files.reading import find_file, sha256
from ldmrt.runtime.files.recognise import (
    BUNDLE,
    CHECKPOINT,
    CONTROLNET,
    EMBEDDING,
    LORA,
    TRANSFORMER,
    refuse_other,
)
from ldmrt.runtime.files.safetensors import content_sha256, read_safetensors
from ldmrt.runtime.tensors import Array

from .files import LONGEST, LoraFile, noted_scale, refuse
from .layers import Layer
from .names import CONTROL, PEFT, flat, other_kind, place, split
from .parts import all_finite, build, lacks

USUAL = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
BUNDLED = re.compile(r"bundle_emb\.(.+)\.(string_to_param\.\*|emb_params|clip_l|clip_g)")
ATensor = TypeVar("ATensor")


@dataclass(frozen=True)
class Lora:
    """Holds a file, with its layers under (component, the module's name with "_" for ".")."""

    name: str
    sha256: str
    layers: Mapping[tuple[str, str], Layer] = field(repr=False)
    content_sha256: str = ""  # without the header of safetensors, as AUTOMATIC1111 has it


Step = tuple[Lora, Layer, float]  # a file, its layer for one module, and the factor of the file's differences


def open_lora(path: Path) -> Lora:
    """Read a safetensors file, or the one of a usual name in a folder, without torch.

    Raises:
        LdmrtError: The file is missing, damaged, not finite, a pickle, or of a kind that is not applied.
    """
    refuse_no_lora(path)
    path = find_file("lora", path, USUAL)
    hint = f"ldmrt export CHECKPOINT BUNDLE --lora {path}"
    if path.suffix.lower() in PICKLES:
        raise LdmrtError("lora", f"{path} is a pickle", expected="a .safetensors file", hint=hint)
    tensors, metadata = read_safetensors("lora", path)
    words, rest = split_words(tensors)
    if words:
        problem = f"{path} brings textual inversions, which change a tokenizer"
        raise LdmrtError("lora", problem, expected="a LoRA alone", found=", ".join(words)[:LONGEST], hint=hint)
    return replace(lora_of(LoraFile.of(path, rest, metadata)), content_sha256=content_sha256(path))


def refuse_no_lora(path: Path) -> None:
    """Refuse a path that is recognised as something else than a LoRA."""
    refuse_other("lora", path, LORA, BUNDLE, CHECKPOINT, CONTROLNET, EMBEDDING, TRANSFORMER)


def split_words(tensors: Mapping[str, ATensor]) -> tuple[dict[str, dict[str, ATensor]], dict[str, ATensor]]:
    """Split off the textual inversions that kohya's files and OneTrainer's bring with them, by their words."""
    words: dict[str, dict[str, ATensor]] = defaultdict(dict)
    rest = {}
    for key, value in tensors.items():
        if match := BUNDLED.fullmatch(key):
            words[match[1]][match[2] if match[2].startswith("clip") else "emb_params"] = value
        else:
            rest[key] = value
    return dict(words), rest


def lora_of(opened: LoraFile, *, words: bool = False) -> Lora:
    """Return the layers of a file of kohya's scripts, LyCORIS, diffusers or PEFT.

    Where it holds no alpha and nothing notes one, alpha is taken to be the rank, with a warning.

    Args:
        opened: The file.
        words: Whether textual inversions came with it: then it may hold no layer.

    Raises:
        LdmrtError: The file is not finite, or of a kind that is not merged, which is named.
    """
    parts = _parts(opened.path, opened.tensors)
    misshapen, unscaled = [], []
    layers: dict[tuple[str, str], Layer] = {}
    for name, tensors in parts.items():
        component, module = place(name)
        noted = partial(noted_scale, opened.notes.get(component), module)
        layer = build(name, tensors, noted)
        if layer is None:
            shapes = " and ".join(f"{part} {tuple(value.shape)}" for part, value in tensors.items())
            misshapen.append(f"{name} of {shapes}")
            continue
        if not (math.isfinite(layer.scale) and all_finite(tensors)):
            raise LdmrtError("lora", f"{name} in {opened.path} is not finite", hint="use another copy of the file")
        if PEFT in name and "alpha" not in tensors and noted(1) is None:
            unscaled.append(name)
        key = (component, flat(module))
        if key in layers:
            raise LdmrtError("lora", f"{opened.path} holds one layer twice", found=f"{layers[key].name} and {name}")
        layers[key] = layer
    refuse(opened.path, misshapen, len(parts), "layers", "have factors that do not fit each other")
    if not layers and not words:
        raise LdmrtError("lora", f"{opened.path} holds no LoRA", found="no tensors")
    if unscaled:
        message = (
            f"lora: {opened.path} has no alpha and no adapter_config.json beside it; alpha is taken to be the rank"
        )
        warnings.warn(message, LdmrtWarning, stacklevel=3)
    return Lora(opened.path.name, sha256(opened.path), layers)


def changed(before: Array, steps: Sequence[Step], kind: str) -> Array:
    """Add what files hold for one weight or bias.

    Args:
        before: The weight or bias, float32.
        steps: The files, in their order.
        kind: "weight" or "bias".

    Returns:
        The sum, float32; `before` itself where no file has anything for it.

    Raises:
        LdmrtError: The weights overflow.
    """
    value = before
    for lora, layer, factor in steps:
        with np.errstate(over="ignore", invalid="ignore"):
            if kind == "weight" and layer.delta is not None:
                value = layer.merged(value, factor, before)
            elif kind == "bias" and layer.bias is not None:
                value = value + np.float32(factor) * layer.bias.astype(np.float32, copy=False)
            # Weights whose squares overflow when summed would make the network's results infinite
            if value is not before and not np.isfinite(np.linalg.norm(value.reshape(-1))):
                hint = f"a smaller weight than {factor:g}, or another copy of the file"
                raise LdmrtError("lora", f"{layer.name} of {lora.name} makes the weights overflow", hint=hint)
    return value


def _parts(path: Path, tensors: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """Sort the tensors of a file by layer, as it spells that, and by part; each layer is whole and of one kind."""
    layers: dict[str, dict[str, Array]] = defaultdict(dict)
    unknown = []
    for key, value in tensors.items():
        if kind := other_kind(key, value.ndim):
            raise LdmrtError("lora", f"unsupported {kind} file {path}", found=key[:LONGEST])
        if (names := split(key)) is None:
            unknown.append(key)
            continue
        layer, part = names
        if part in layers[layer]:
            raise LdmrtError("lora", f"{path} holds two tensors for the {part} of one layer", found=key[:LONGEST])
        layers[layer][part] = value
    if layers and (norms := [key for key in unknown if CONTROL.search(key)]):
        hint = "the whole model, such as FLUX.1-Canny-dev or FLUX.1-Depth-dev"
        raise LdmrtError("lora", f"unsupported control LoRA {path}", found=norms[0][:LONGEST], hint=hint)
    refuse(path, unknown, len(tensors), "tensors", "are no part of a LoRA")
    lacking: dict[str, list[str]] = defaultdict(list)
    for name, parts in layers.items():
        if problem := lacks(parts):
            lacking[problem].append(name)
    for problem, lone in lacking.items():
        refuse(path, lone, len(layers), "layers", problem)
    return layers
