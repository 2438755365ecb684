"""Whole models in one file, as CompVis' and Stability AI's programs write them: which family, which weight is whose.

The file holds weights alone. What they belong to is told from their shapes, by the rows of `FAMILIES`; the configs in
the rows are those of the folders that diffusers takes for the same file. The tokenizer comes from elsewhere.
"""

import json
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ldmrt.model.networks.unet import UNetConfig
from ldmrt.model.weights.lazy import Lazy, Place, as_it_is
from ldmrt.model.weights.weights import SUFFIXES as SUFFIXES
from ldmrt.model.weights.weights import Tensors, open_noted
from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.runtime.tokenizer.vocabulary import END, START

from .families import OPEN_CLIP, Family, Text, recognise
from .file_notes import TABLES, FileNotes, check_latents, without_leftovers
from .folder import TEXT, Source, read_tokenizer
from .original_names import UNET, VAE, clip_place, ldm_modules, open_clip_place, unet_name, vae_place

CONDITIONERS = ("cond_stage_model.", "conditioner.")  # what text encoders stand under


def read_file(
    path: Path,
    tokenizer: str | Path | None = None,
    prediction_type: str | None = None,
    replaced: Collection[str] = (),
) -> Source:
    """What a file holds, with the vocabulary in the folder `tokenizer`. Parts that are `replaced` may be missing."""
    held, notes = open_noted("checkpoint", path)
    family = recognise(held, path, replaced)
    if "addition_embed_type" in family.unet:
        check_latents(held, path)
    said = FileNotes.read(path, held, notes)
    scheduler = said.scheduler(family.scheduler, prediction_type)
    tensors = without_leftovers(held, path, doubles(held, family))
    parts = split(tensors, family, path, replaced)
    second = family.scheduler.get("prediction_type") == "v_prediction"
    if second and scheduler["prediction_type"] == "v_prediction" and not (prediction_type or said.prediction):
        warnings.warn(
            f"{path.name} is Stable Diffusion {family.name} and does not say what it predicts: v_prediction is taken, "
            "as in the models of 768 pixels; those of 512 pixels predict epsilon",
            LdmrtWarning, stacklevel=3,
        )  # fmt: skip
    small = {"sample_size": 64} if second and scheduler["prediction_type"] == "epsilon" else {}
    networks = {
        "unet": ("UNet2DConditionModel", family.unet | small),
        "vae": ("AutoencoderKL", family.vae),
        **{part: (text.kind, text.config) for part, text in family.texts.items()},
    }
    return Source(dict(family.index), networks, tokenizers(family, tokenizer), scheduler, parts.__getitem__)


def doubles(tensors: Mapping[str, Lazy], family: Family) -> set[str]:
    """Text encoders that the family does not read, and weights that are there under an older name too."""
    prefixes = tuple(text.prefix for text in family.texts.values())
    texts = {key for key in tensors if key.startswith(CONDITIONERS)}
    other = {key for key in texts if not key.startswith(prefixes) and not TABLES.fullmatch(key)}
    for text in family.texts.values():
        full = f"{text.prefix}text_model."
        other |= {key for key in texts if full + key.removeprefix(text.prefix) in tensors}
    return other


def split(
    tensors: Mapping[str, Lazy], family: Family, path: Path, replaced: Collection[str] = ()
) -> dict[str, Tensors]:
    """The tensors of each part that is not `replaced`. What belongs to none is an error."""
    prefixes = {"unet": UNET, "vae": VAE, **{part: text.prefix for part, text in family.texts.items()}}
    found: dict[str, dict[str, Lazy]] = {part: {} for part in prefixes}
    surplus = []
    for key, tensor in tensors.items():
        part = next((part for part, prefix in prefixes.items() if key.startswith(prefix)), None)
        if part is None:
            surplus.append(key)
        else:
            found[part][key] = tensor
    if surplus:
        raise LdmrtError("checkpoint", f"{len(surplus)} tensors of {path} have no place", found=min(surplus))
    modules = ldm_modules(UNetConfig.read(family.unet))
    places: dict[str, Callable[[str], Place]] = {
        "unet": lambda key: (unet_name(key, modules), as_it_is),
        "vae": lambda key: vae_place(key, len(family.vae["block_out_channels"])),
    }
    for part, text in family.texts.items():
        found[part] = {key: tensor for key, tensor in found[part].items() if not unused(key, text)}
        if text.names == OPEN_CLIP:
            places[part] = partial(open_clip_place, prefix=text.prefix)
        else:
            full = any(key.startswith(f"{text.prefix}text_model.") for key in found[part])  # some of 2022 leave it out
            places[part] = partial(clip_place, prefix=f"{text.prefix}text_model." if full else text.prefix)
    return {part: Tensors(named, path, places[part]) for part, named in found.items() if part not in replaced}


def unused(key: str, text: Text) -> bool:
    """What a file has beyond the part of a text encoder that is used: layers after the last, and a projection."""
    name = key.removeprefix(text.prefix)
    block = re.match(r"transformer\.resblocks\.(\d+)\.", name)
    beyond = block is not None and int(block[1]) >= text.config["num_hidden_layers"]
    return beyond or (name.startswith("text_projection") and text.kind == TEXT[0])


def tokenizers(family: Family, folder: str | Path | None) -> dict[str, dict[str, bytes]]:
    """The files of each tokenizer of a family: the vocabulary in `folder`, or in its folder "tokenizer"."""
    if folder is None:
        raise LdmrtError(
            "tokenizer", "a single file holds none", expected="a folder with CLIP's vocab.json and merges.txt",
            hint="--tokenizer FOLDER, of any Stable Diffusion in diffusers' layout",
        )  # fmt: skip
    folder = Path(folder)
    nested = folder / "tokenizer"
    files = read_tokenizer("tokenizer", nested if nested.is_dir() else folder)
    vocabulary: dict[str, bytes] = {
        name: files[name] for name in ("vocab.json", "merges.txt", "tokenizer.json") if name in files
    }
    found: dict[str, dict[str, bytes]] = {}
    for part, text in family.texts.items():
        special: dict[str, Any] = {"bos_token": START, "eos_token": END, "pad_token": text.pad, "unk_token": END}
        config: dict[str, Any] = {"model_max_length": text.config["max_position_embeddings"]}
        config["tokenizer_class"] = "CLIPTokenizer"
        more = {"special_tokens_map.json": special, "tokenizer_config.json": {**special, **config}}
        made = {name: (json.dumps(content, indent=2) + "\n").encode() for name, content in more.items()}
        found[part.replace("text_encoder", "tokenizer")] = {**vocabulary, **made}
    return found
