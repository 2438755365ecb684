"""Read LoRA files on disk: their tensors, and what PEFT noted of them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ldmrt.model.weights.pickled import lazy_tensor, unwrapped
from ldmrt.model.weights.tensor_files import find_file, read
from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.files.reading import JsonObject, parse_json, read_json

from .names import INDICES, PEFT, PREFIXES, SIZE, matches

USUAL = (
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "pytorch_lora_weights.bin",
    "adapter_model.bin",
)
LARGEST = 1e300  # Python's own whole numbers have no end
WHOLE = (torch.uint8, torch.int16, torch.int32, torch.int64)  # of the indices of a sparse tensor
LONGEST = 200  # characters of a name that a message repeats

Notes = JsonObject  # of one network's adapter, as PEFT's config has them
V = TypeVar("V")


@dataclass(frozen=True)
class LoraFile:
    """Holds the tensors of a file, and what PEFT noted of each component's adapter."""

    path: Path
    tensors: Mapping[str, Tensor] = field(repr=False)
    notes: Mapping[str, Notes]


def open_lora(path: Path) -> LoraFile:
    """Open a file, or the one of a usual name in a folder.

    diffusers keeps PEFT's notes inside the file, PEFT in one beside it, for the one network that the file is of.

    Raises:
        LdmrtError: The file is missing, damaged, or holds something else than named tensors.
    """
    path = find_file("lora", path, USUAL)
    content, metadata = read("lora", path)
    tensors = _tensors(path, content)
    beside = path.with_name("adapter_config.json")
    if beside.is_file() and (path.stem == "adapter_model" or any(key.startswith(PEFT) for key in tensors)):
        return LoraFile(path, tensors, dict.fromkeys(PREFIXES.values(), read_json("lora", beside)))
    return LoraFile(path, tensors, _inner_notes(path, metadata.get("lora_adapter_metadata", "{}")))


def noted_scale(notes: Notes | None, module: str, rank: int | None) -> float | None:
    """Compute alpha / rank by PEFT's rules.

    Args:
        notes: What PEFT noted, if anything.
        module: The module's name.
        rank: The rank of the factors; None for a LoKr whose factors are whole, which has the noted rank.

    Returns:
        The scale; None where nothing is noted: it is then 1, as diffusers has it.

    Raises:
        LdmrtError: The notes are invalid.
    """
    alpha = (notes or {}).get("lora_alpha", (notes or {}).get("alpha"))
    if not notes or alpha is None:
        return None
    try:
        alpha = _by_pattern(notes.get("alpha_pattern"), module, alpha)
        rank = int(_by_pattern(notes.get("rank_pattern"), module, notes["r"]) if rank is None else rank)
        return float(alpha) / (math.sqrt(rank) if notes.get("use_rslora") else rank)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise LdmrtError("lora", f"invalid notes on {module}", found=first_line(error)) from None


def _by_pattern(patterns: Mapping[str, V] | None, module: str, value: V) -> V:
    """Return the value of the first pattern that is for a module, or `value`."""
    return next((other for pattern, other in (patterns or {}).items() if matches(pattern, module)), value)


def _tensors(path: Path, content: object) -> dict[str, Tensor]:
    """Return the tensors of a state dict, which may lie in another's "state_dict"; numbers become tensors."""
    content, _ = unwrapped("lora", content, path)
    if not isinstance(content, Mapping):
        raise LdmrtError("lora", f"{path} holds no LoRA", expected="named tensors", found=type(content).__name__)
    tensors = {}
    for key, value in content.items():
        if isinstance(value, (int, float)) and abs(value) < LARGEST:
            value = torch.tensor(float(value))  # an alpha
        if not isinstance(key, str) or not isinstance(value, Tensor):
            kind, name = type(value).__name__, repr(key)[:LONGEST]
            raise LdmrtError("lora", f"{name} in {path} is not a tensor", expected="named tensors", found=kind)
        lazy_tensor("lora", key[:LONGEST], value, path)
        if lacking := _lacking_numbers(key, value):
            raise LdmrtError("lora", f"{key[:LONGEST]} in {path} holds no {lacking} numbers", found=value.dtype)
        tensors[key] = value.detach()
    return tensors


def _lacking_numbers(key: str, value: Tensor) -> str | None:
    """Name the kind of numbers that a tensor of this name lacks, if it holds another; a single one may be of any."""
    if key.endswith((f".{INDICES}", f".{SIZE}")):
        return None if value.dtype in WHOLE else "whole"
    single = value.numel() == 1 and not value.is_complex()
    return None if single or value.is_floating_point() else "floating-point"


def _inner_notes(path: Path, text: str) -> dict[str, Notes]:
    """Split the notes of diffusers, whose keys begin with the component."""
    inside = parse_json("lora", f"the notes of {path}", text)
    notes: dict[str, Notes] = {}
    for key, value in inside.items():
        component, _, name = key.partition(".")
        notes.setdefault(component, {})[name] = value
    return notes


def refuse(
    file: str | Path, names: Iterable[str], total: int, what: str, problem: str, hint: str | None = None
) -> None:
    """Raise one error for all of `names`, if there are any: how many, and the first few."""
    if names := list(names):
        found = ", ".join(name[:LONGEST] for name in names[:3]) + (", ..." if len(names) > 3 else "")
        raise LdmrtError("lora", f"{len(names)} of {total} {what} of {file} {problem}", found=found, hint=hint)
