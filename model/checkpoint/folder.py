"""Describe the parts of a checkpoint before any weight is read, as a folder in diffusers' layout states them."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ldmrt.model.library.gemma2 import GEMMA
from ldmrt.model.library.qwen3 import QWEN, WITH_HEAD
from ldmrt.model.library.t5 import T5
from ldmrt.model.weights.weight_files import choose, names_in, variants
from ldmrt.model.weights.weights import Tensors, bare, open_weights
from ldmrt.runtime.bundle.stage_of_configs import PIXART, TRANSFORMERS
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject, read_bytes, read_json
from ldmrt.runtime.nearest import suggestion

INDEX = "model_index.json"
SCHEDULER, NOISERS = "scheduler", ("low_res_scheduler",)
TEXT = ("CLIPTextModel", "CLIPTextModelWithProjection")
T5_TOKENIZER = ("T5Tokenizer", "T5TokenizerFast")
GEMMA_TOKENIZER = ("GemmaTokenizer", "GemmaTokenizerFast")
QWEN_TOKENIZER = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
ONE_STATE = (T5, GEMMA, QWEN)  # text encoders of which one state is read, with positions for any number of tokens
TOKENIZER = ("CLIPTokenizer", "CLIPTokenizerFast", "BertTokenizer", "BertTokenizerFast")

# The parts of a folder that are read, and the classes that each may be of.
PARTS: dict[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel", "UNet2DModel"),
    "transformer": (*TRANSFORMERS, "Transformer2DModel"),
    "vae": ("AutoencoderKL", "VQModel", "AutoencoderTiny", "AutoencoderDC"),
    "text_encoder": (*TEXT, "LDMBertModel", T5, GEMMA, QWEN, WITH_HEAD),
    "text_encoder_2": (*TEXT, T5),
    "text_encoder_3": (T5,),
    "tokenizer": (*TOKENIZER, *T5_TOKENIZER, *GEMMA_TOKENIZER, *QWEN_TOKENIZER),
    "tokenizer_2": (*TOKENIZER, *T5_TOKENIZER),
    "tokenizer_3": T5_TOKENIZER,
    "controlnet": ("ControlNetModel",),
    "adapter": ("T2IAdapter",),
}
# By the class that is read: one that diffusers had for several, and one with a layer that is not read.
OLDER = {"Transformer2DModel": PIXART, WITH_HEAD: QWEN}
ALIASES = {"vqvae": "vae", "bert": "text_encoder"}  # parts under the names that older pipelines have for them
CONFIGS = {"unet": "config.json", SCHEDULER: "scheduler_config.json"}  # of parts that may have no folder of their own
T5_PARTS = ("text_encoder_3", "tokenizer_3")  # which may be left out
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # of no influence on the images of a prompt


@dataclass(frozen=True)
class Source:
    """Holds a checkpoint's configs and files. `index` is model_index.json without the parts that are here.

    `folders` names the folders of parts that have another name in model_index.json.
    """

    index: JsonObject
    networks: dict[str, tuple[str, JsonObject]]  # part -> class in diffusers or transformers, and its config
    tokenizers: dict[str, dict[str, bytes]]
    scheduler: JsonObject
    tensors: Callable[[str], Tensors]  # of a part
    noisers: dict[str, JsonObject] = field(default_factory=dict)  # schedulers that add noise to an image, by folder
    folders: dict[str, str] = field(default_factory=dict)


def read_folder(
    folder: Path, variant: str | None = None, replaced: Collection[str] = (), left_out: Collection[str] = ()
) -> Source:
    """Describe a checkpoint in diffusers' layout.

    Args:
        folder: The folder with model_index.json.
        variant: The variant of the weights, such as fp16, taken of each part that has it; plain files of the others.
        replaced: Parts that come from elsewhere and may be missing.
        left_out: Parts that are not read, as if the model had none.

    Raises:
        LdmrtError: A file is missing or damaged, a part is unsupported, or no part has the variant.
    """
    if not folder.is_dir():
        raise LdmrtError("checkpoint", f"no folder {folder}", expected="a folder in diffusers' layout")
    content = read_json("checkpoint", folder / INDEX)
    index, parts = split_index(content, left_out)
    folders = folders_of(parts, content, lambda file: (folder / file).is_file())

    def place(part: str) -> Path:
        """Return the folder of a part."""
        return folder / folders[part]

    if SCHEDULER not in parts:
        raise LdmrtError("scheduler", f"{folder / INDEX} names no scheduler", expected="a class of diffusers")
    schedulers = {
        name: {**read_json(name, place(name) / CONFIGS[SCHEDULER]), "_class_name": kind}
        for name, kind in parts.items()
        if name in (SCHEDULER, *NOISERS)
    }
    tokenizers = {name: read_tokenizer(name, folder / name) for name in parts if name.startswith("tokenizer")}
    networks = {
        name: (kind, read_json(name, place(name) / "config.json"))
        for name, kind in parts.items()
        if name not in (*schedulers, *tokenizers)
        and not (name in replaced and not (place(name) / "config.json").exists())
    }
    check_variant(variant, {name: names_in(place(name)) for name in networks}, folder)

    def tensors(part: str) -> Tensors:
        """Describe the tensors of a part, once they are needed."""
        return part_of_folder(part, place(part), variant)

    renamed = {part: name for part, name in folders.items() if part in networks and name not in (part, "")}
    return Source(index, networks, tokenizers, schedulers.pop(SCHEDULER), tensors, schedulers, renamed)


def folders_of(parts: Iterable[str], content: JsonObject, there: Callable[[str], bool]) -> dict[str, str]:
    """Find the folder of each part, as diffusers does: that of its name, or "", which is the model's own.

    Args:
        parts: Parts by their names here.
        content: The content of model_index.json, which may have other names for them.
        there: Tells whether a file exists, by its path in the model's folder.
    """
    aliases = {part: alias for alias, part in ALIASES.items() if alias in content}
    folders = {part: aliases.get(part, part) for part in parts}
    lone = {part for part, file in CONFIGS.items() if not there(f"{part}/{file}") and there(file)}
    return {part: "" if part in lone else name for part, name in folders.items()}


def part_of_folder(part: str, folder: Path, variant: str | None = None) -> Tensors:
    """Describe the tensors of one network in its own folder."""
    path = folder / choose(part, names_in(folder), variant, folder)
    return Tensors({bare(key): tensor for key, tensor in open_weights(part, path).items()}, path)


def check_variant(variant: str | None, names: Mapping[str, Iterable[str]], where: object) -> None:
    """Refuse a variant that no part has."""
    there = {kind for part in names.values() for kind in variants(part)}
    if variant and variant not in there:
        found = ", ".join(sorted(kind or "plain" for kind in there))
        problem = f"no variant {variant!r} in {where}{suggestion(variant, there)}"
        raise LdmrtError("checkpoint", problem, found=found or "no weights")


def split_index(content: JsonObject, left_out: Collection[str] = ()) -> tuple[JsonObject, dict[str, str]]:
    """Split a model_index.json into its own fields and the classes of the parts that are read.

    Raises:
        LdmrtError: A part or its class is unsupported, or one is not there that is to be left out.
    """
    index: JsonObject = {}
    parts: dict[str, str] = {}
    if any(content.get(name) in (None, [None, None]) for name in left_out):
        raise LdmrtError("checkpoint", "no T5 can be left out of this model", expected="no --without-t5")
    for alias, value in content.items():
        name = ALIASES.get(alias, alias)
        if name != alias and name in content:
            raise LdmrtError(name, f"{INDEX} names {name} and {alias}", expected="one of them")
        if not isinstance(value, list):
            index[alias] = value
        elif value == [None, None] or name in UNUSED or name in left_out:
            index[name] = [None, None]
        elif len(value) != 2 or not isinstance(value[1], str):
            raise LdmrtError("checkpoint", f"{INDEX} has an invalid {name}", found=repr(value))
        elif name in (SCHEDULER, *NOISERS):
            parts[name] = value[1]
        elif name not in PARTS:
            raise LdmrtError("checkpoint", f"unsupported {name} in {INDEX}", found=value[1])
        elif value[1] not in PARTS[name]:
            expected = " or ".join(PARTS[name])
            raise LdmrtError(name, f"unsupported {value[1]} in {INDEX}", expected=expected)
        else:
            parts[name] = OLDER.get(value[1], value[1]).removesuffix("Fast")
    index.pop("_name_or_path", None)  # a folder on the machine that made it
    if "safety_checker" in index:
        index["requires_safety_checker"] = False
    return index, parts


def read_tokenizer(component: str, folder: Path) -> dict[str, bytes]:
    """Read the files of a tokenizer's folder, name to content."""
    paths = [
        path
        for path in sorted(folder.glob("*"))
        if path.suffix in (".json", ".txt", ".model", ".jinja") and not path.is_dir()
    ]
    files = {path.name: read_bytes(component, path) for path in paths}
    if not files:
        raise LdmrtError(
            component, "missing files", expected=f"{folder}/vocab.json and merges.txt, vocab.txt or tokenizer.json"
        )
    return files
