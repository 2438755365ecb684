"""Which of the files in a network's folder holds its weights: plain or a variant, whole or in shards."""

import re
from collections.abc import Iterable
from pathlib import Path

from ldmrt.runtime.errors import LdmrtError

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # diffusers', transformers', and transformers' of old
SUFFIXES = ("safetensors", "bin", "ckpt")  # the first that is there is read


def _spelt(name: str) -> tuple[str, str, bool, str] | None:
    """Stem, variant, whether it is an index, and suffix of a weights file's name; None for a shard or anything else."""
    stem, *words = name.split(".")
    index = words[-1:] == ["json"] and "index" in words
    suffix = next((word for word in (words if index else words[-1:]) if word in SUFFIXES), None)
    if stem not in STEMS or suffix is None or re.search(r"-\d+-of-\d+\.", name):
        return None
    return stem, ".".join(word for word in words if word not in (suffix, "index", "json")), index, suffix


def variants(names: Iterable[str]) -> dict[str, str]:
    """The file to read for each variant, "" for the plain one, among names in a folder; an index is for its shards."""
    found: dict[str, tuple[int, bool, str]] = {}
    for name in names:
        if spelt := _spelt(name):
            _, variant, index, suffix = spelt
            rank = SUFFIXES.index(suffix), index, name
            found[variant] = min(found.get(variant, rank), rank)
    return {variant: name for variant, (_, _, name) in found.items()}


def choose(component: str, names: Iterable[str], variant: str | None, where: object) -> str:
    """The file to read: of `variant`, else the plain one, else of the only variant that is there."""
    there = variants(names)
    for name in (variant, "", *(there if len(there) == 1 and variant is None else ())):
        if name is not None and name in there:
            return there[name]
    if there:
        wanted = f"{variant} or plain" if variant else "plain"
        found = ", ".join(name or "plain" for name in sorted(there))
        raise LdmrtError(component, f"no {wanted} weights in {where}", found=found, hint="choose another variant")
    name = STEMS[1 if component.startswith("text_encoder") else 0]
    raise LdmrtError(component, "missing file", expected=f"{where}/{name}.safetensors")


def shards(index: str, names: Iterable[str]) -> list[str]:
    """The files of which a file is the index, among names in a folder; none where it is no index."""
    stem, variant, is_index, suffix = _spelt(index) or ("", "", False, "")
    word = f"(\\.{re.escape(variant)})" if variant else "()"  # before the number, or after it in files of 2023
    pattern = rf"{stem}(?:{word}-\d+-of-\d+|-\d+-of-\d+{word})\.{suffix}"
    return [name for name in names if is_index and re.fullmatch(pattern, name)]


def names_in(folder: Path) -> list[str]:
    """The names of the files in a folder."""
    return sorted(path.name for path in folder.glob("*") if path.is_file())
