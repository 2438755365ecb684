"""Describe LoRA files: their tensors, what PEFT noted of them, and what no LoRA holds."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.files.reading import JsonObject, parse_json, read_json
from ldmrt.runtime.tensors import Array

from .names import INDICES, PEFT, PREFIXES, SIZE, matches

LONGEST = 200  # characters of a name that a message repeats

Notes = JsonObject  # of one network's adapter, as PEFT's config has them
V = TypeVar("V")


@dataclass(frozen=True)
class LoraFile:
    """Holds the tensors of a file, and what PEFT noted of each component's adapter."""

    path: Path
    tensors: Mapping[str, Array] = field(repr=False)
    notes: Mapping[str, Notes]

    @classmethod
    def of(cls, path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> "LoraFile":
        """Describe the tensors of a file, with what PEFT noted inside it or beside it.

        diffusers keeps PEFT's notes inside the file, PEFT in one beside it, for the one network that the file is of.

        Raises:
            LdmrtError: A tensor holds numbers of another kind than a LoRA's, or the notes are damaged.
        """
        for key, value in tensors.items():
            if lacking := _lacking_numbers(key, value):
                raise LdmrtError("lora", f"{key[:LONGEST]} in {path} holds no {lacking} numbers", found=value.dtype)
        beside = path.with_name("adapter_config.json")
        if beside.is_file() and (path.stem == "adapter_model" or any(key.startswith(PEFT) for key in tensors)):
            return cls(path, tensors, dict.fromkeys(PREFIXES.values(), read_json("lora", beside)))
        return cls(path, tensors, _inner_notes(path, metadata.get("lora_adapter_metadata", "{}")))


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


def _lacking_numbers(key: str, value: Array) -> str | None:
    """Name the kind of numbers that a tensor of this name lacks, if it holds another; a single one may be of any."""
    if key.endswith((f".{INDICES}", f".{SIZE}")):
        return None if value.dtype.kind in "iu" else "whole"
    single = value.size == 1 and value.dtype.kind != "c"
    return None if single or value.dtype.kind == "f" else "floating-point"


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
