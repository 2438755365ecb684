"""What a checkpoint is made of, before any weight is read; and how a folder in diffusers' layout says it."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmrt.model.weights.weight_files import choose, names_in, variants
from ldmrt.model.weights.weights import Tensors, bare, open_weights
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import read_bytes, read_json
from ldmrt.runtime.nearest import suggestion

INDEX = "model_index.json"
SCHEDULER = "scheduler"
TEXT = ("CLIPTextModel", "CLIPTextModelWithProjection")
TOKENIZER = ("CLIPTokenizer", "CLIPTokenizerFast")

# What is read of a folder, and the classes that it may be of.
PARTS: dict[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": TEXT,
    "text_encoder_2": TEXT,
    "tokenizer": TOKENIZER,
    "tokenizer_2": TOKENIZER,
    "controlnet": ("ControlNetModel",),
    "adapter": ("T2IAdapter",),
}
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # of no influence on a picture made from words


@dataclass(frozen=True)
class Source:
    """Configs and files. `index` is model_index.json without the parts that are here."""

    index: dict[str, Any]
    networks: dict[str, tuple[str, dict[str, Any]]]  # part -> class in diffusers or transformers, and its config
    tokenizers: dict[str, dict[str, bytes]]
    scheduler: dict[str, Any]
    tensors: Callable[[str], Tensors]  # of a part


def read_folder(folder: Path, variant: str | None = None, replaced: Collection[str] = ()) -> Source:
    """A checkpoint in diffusers' layout. `variant` is taken of each part that has it, the plain files of the others.
    Parts that are `replaced` may be missing.
    """
    if not folder.is_dir():
        raise LdmrtError("checkpoint", f"no folder {folder}", expected="a folder in diffusers' layout")
    index, parts = split_index(read_json("checkpoint", folder / INDEX))
    if SCHEDULER not in parts:
        raise LdmrtError("scheduler", f"{folder / INDEX} names none", expected="a class of diffusers")
    scheduler = read_json(SCHEDULER, folder / SCHEDULER / "scheduler_config.json")
    tokenizers = {name: read_tokenizer(name, folder / name) for name in parts if name.startswith("tokenizer")}
    networks = {
        name: (kind, read_json(name, folder / name / "config.json"))
        for name, kind in parts.items()
        if name not in (SCHEDULER, *tokenizers)
        and not (name in replaced and not (folder / name / "config.json").exists())
    }
    check_variant(variant, {name: names_in(folder / name) for name in networks}, folder)

    def tensors(part: str) -> Tensors:
        return part_of_folder(part, folder / part, variant)

    return Source(index, networks, tokenizers, {**scheduler, "_class_name": parts[SCHEDULER]}, tensors)


def part_of_folder(part: str, folder: Path, variant: str | None = None) -> Tensors:
    """The tensors of one network in its own folder."""
    path = folder / choose(part, names_in(folder), variant, folder)
    return Tensors({bare(key): tensor for key, tensor in open_weights(part, path).items()}, path)


def check_variant(variant: str | None, names: Mapping[str, Iterable[str]], where: object) -> None:
    """An `LdmrtError` where no part has a variant that is asked for."""
    there = {kind for part in names.values() for kind in variants(part)}
    if variant and variant not in there:
        found = ", ".join(sorted(kind or "plain" for kind in there))
        problem = f"no variant {variant!r} in {where}{suggestion(variant, there)}"
        raise LdmrtError("checkpoint", problem, found=found or "no weights")


def split_index(content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields of a model_index.json that are its own, and the classes of the parts that are read."""
    index: dict[str, Any] = {}
    parts: dict[str, str] = {}
    for name, value in content.items():
        if not isinstance(value, list):
            index[name] = value
        elif value == [None, None] or name in UNUSED:
            index[name] = [None, None]
        elif len(value) != 2 or not isinstance(value[1], str):
            raise LdmrtError("checkpoint", f"{INDEX} has an invalid {name}", found=repr(value))
        elif name == SCHEDULER:
            parts[name] = value[1]
        elif name not in PARTS:
            raise LdmrtError("checkpoint", f"unsupported {name} in {INDEX}", found=value[1])
        elif value[1] not in PARTS[name]:
            expected = " or ".join(PARTS[name])
            raise LdmrtError(name, f"unsupported {value[1]} in {INDEX}", expected=expected)
        else:
            parts[name] = value[1].removesuffix("Fast")
    index.pop("_name_or_path", None)  # a folder on the machine that made it
    if "safety_checker" in index:
        index["requires_safety_checker"] = False
    return index, parts


def read_tokenizer(component: str, folder: Path) -> dict[str, bytes]:
    """The files of a tokenizer's folder."""
    paths = [path for path in sorted(folder.glob("*")) if path.suffix in (".json", ".txt") and not path.is_dir()]
    files = {path.name: read_bytes(component, path) for path in paths}
    if not files:
        raise LdmrtError(component, "missing files", expected=f"{folder}/vocab.json and merges.txt")
    return files
