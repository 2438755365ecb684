"""Choose among the files in a network's folder the one with its weights: plain or a variant, whole or in shards."""

import re
from collections.abc import Iterable
from pathlib import Path

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.recognise import gguf_error, only_gguf

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # diffusers', transformers', and transformers' of old
SUFFIXES = ("safetensors", "bin", "ckpt")  # the first that is there is read


def _spelt(name: str) -> tuple[str, str, bool, str] | None:
    """Split a weights file's name into stem, variant, whether it is an index, and suffix; None for any other name."""
    stem, *words = name.split(".")
    index = words[-1:] == ["json"] and "index" in words
    suffix = next((word for word in (words if index else words[-1:]) if word in SUFFIXES), None)
    if stem not in STEMS or suffix is None or re.search(r"-\d+-of-\d+\.", name):
        return None
    return stem, ".".join(word for word in words if word not in (suffix, "index", "json")), index, suffix


def variants(names: Iterable[str]) -> dict[str, str]:
    """Return the file to read for each variant, "" for the plain one; an index stands for its shards."""
    best: dict[str, tuple[int, bool, str]] = {}
    for name in names:
        if spelt := _spelt(name):
            _, variant, index, suffix = spelt
            rank = SUFFIXES.index(suffix), index, name
            best[variant] = min(best.get(variant, rank), rank)
    return {variant: name for variant, (_, _, name) in best.items()}


def choose(component: str, names: Iterable[str], variant: str | None, where: object) -> str:
    """Return the file to read among `names`: of `variant`, else the plain one, else of the only variant there is."""
    names = list(names)
    there = variants(names)
    for name in (variant, "", *(there if len(there) == 1 and variant is None else ())):
        if name is not None and name in there:
            return there[name]
    if there:
        expected = f"{variant} or plain" if variant else "plain"
        found = ", ".join(name or "plain" for name in sorted(there))
        raise LdmrtError(component, f"no {expected} weights in {where}", found=found, hint="choose another variant")
    if gguf := only_gguf(names):
        raise gguf_error(component, f"{where}/{gguf}")
    name = STEMS[1 if component.startswith("text_encoder") else 0]
    raise LdmrtError(component, "missing file", expected=f"{where}/{name}.safetensors")


def shards(index: str, names: Iterable[str]) -> list[str]:
    """Return those of `names` that are shards of an index; none where the file is no index."""
    stem, variant, is_index, suffix = _spelt(index) or ("", "", False, "")
    word = f"(\\.{re.escape(variant)})" if variant else "()"  # before the number, or after it in files of 2023
    pattern = rf"{stem}(?:{word}-\d+-of-\d+|-\d+-of-\d+{word})\.{suffix}"
    return [name for name in names if is_index and re.fullmatch(pattern, name)]


def names_in(folder: Path) -> list[str]:
    """Return the names of the files in a folder, sorted."""
    return sorted(path.name for path in folder.glob("*") if path.is_file())
