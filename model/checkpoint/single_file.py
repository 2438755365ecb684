"""Read whole models in one file, as CompVis' and Stability AI's programs write them.

The file holds weights alone. Their shapes tell the family, a row of `FAMILIES`; the configs in the rows are those of
the folders that diffusers takes for the same file. The tokenizer comes from elsewhere.
"""

import json
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from ldmrt.model.library.t5 import T5
from ldmrt.model.networks.unet import UNetConfig
from ldmrt.model.weights.lazy import Lazy, Place, as_it_is
from ldmrt.model.weights.weights import SUFFIXES as SUFFIXES
from ldmrt.model.weights.weights import Tensors, open_noted
from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.runtime.tokenizer.vocabulary import END, START, is_unigram

from .families import OPEN_CLIP, Family, Text, recognise
from .file_notes import TABLES, FileNotes, check_latents, without_leftovers
from .folder import TEXT, Source, read_tokenizer
from .original_names import UNET, VAE, clip_place, ldm_modules, open_clip_place, unet_name, vae_place
from .transformers.files import read_transformer

CONDITIONERS = ("cond_stage_model.", "conditioner.")  # how the names of text encoders' weights begin
OF_T5 = "a Stable Diffusion 3 or FLUX.1"  # whose tokenizers are CLIP's and T5's


def read_file(
    path: Path,
    tokenizer: str | Path | None = None,
    prediction_type: str | None = None,
    replaced: Collection[str] = (),
    left_out: Collection[str] = (),
) -> Source:
    """Describe the checkpoint in a file.

    Args:
        path: A .safetensors or .ckpt file.
        tokenizer: A folder with CLIP's vocabulary, or a checkpoint's folder with a tokenizer in it.
        prediction_type: The prediction type that the user states; it comes before what the file says.
        replaced: Parts that come from elsewhere and may be missing.
        left_out: Parts that are not read, as if the model had none.

    Raises:
        LdmrtError: The file is damaged, of no known family, or holds unexpected tensors; or the vocabulary is missing.
    """
    everything, notes = open_noted("checkpoint", path)
    if found := read_transformer(path, everything, replaced, left_out):
        described, texts = found
        stated = {} if prediction_type is None else {"prediction_type": prediction_type}
        return replace(described, tokenizers=tokenizers(texts, tokenizer), scheduler={**described.scheduler, **stated})
    if left_out:
        raise LdmrtError("checkpoint", "a single file has no T5 to leave out", expected="no --without-t5")
    family = recognise(everything, path, replaced)
    if "addition_embed_type" in family.unet:
        check_latents(everything, path)
    file_notes = FileNotes.read(path, everything, notes)
    scheduler = file_notes.scheduler(family.scheduler, prediction_type)
    tensors = without_leftovers(everything, path, doubles(everything, family))
    parts = split(tensors, family, path, replaced)
    second = family.scheduler.get("prediction_type") == "v_prediction"
    if second and scheduler["prediction_type"] == "v_prediction" and not (prediction_type or file_notes.prediction):
        warnings.warn(
            f"{path.name} is Stable Diffusion {family.name} and does not say what it predicts: v_prediction is taken, "
            "as in the models of 768 pixels; those of 512 pixels predict epsilon",
            LdmrtWarning,
            stacklevel=3,
        )
    small = {"sample_size": 64} if second and scheduler["prediction_type"] == "epsilon" else {}
    networks = {
        "unet": ("UNet2DConditionModel", family.unet | small),
        "vae": ("AutoencoderKL", family.vae),
        **{part: (text.kind, text.config) for part, text in family.texts.items()},
    }
    return Source(dict(family.index), networks, tokenizers(family.texts, tokenizer), scheduler, parts.__getitem__)


def doubles(tensors: Mapping[str, Lazy], family: Family) -> set[str]:
    """Return names of text encoders that the family does not read, and of weights stored under an older name too."""
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
    """Split the tensors of a file among the parts that are not `replaced`; a tensor of no part is an error."""
    prefixes = {"unet": UNET, "vae": VAE, **{part: text.prefix for part, text in family.texts.items()}}
    by_part: dict[str, dict[str, Lazy]] = {part: {} for part in prefixes}
    surplus = []
    for key, tensor in tensors.items():
        part = next((part for part, prefix in prefixes.items() if key.startswith(prefix)), None)
        if part is None:
            surplus.append(key)
        else:
            by_part[part][key] = tensor
    if surplus:
        raise LdmrtError("checkpoint", f"{path} holds {len(surplus)} unexpected tensors", found=min(surplus))
    modules = ldm_modules(UNetConfig.read(family.unet))
    places: dict[str, Callable[[str], Place]] = {
        "unet": lambda key: (unet_name(key, modules), as_it_is),
        "vae": lambda key: vae_place(key, len(family.vae["block_out_channels"])),
    }
    for part, text in family.texts.items():
        by_part[part] = {key: tensor for key, tensor in by_part[part].items() if not unused(key, text)}
        if text.names == OPEN_CLIP:
            places[part] = partial(open_clip_place, prefix=text.prefix)
        else:
            full = any(key.startswith(f"{text.prefix}text_model.") for key in by_part[part])  # some of 2022 omit it
            places[part] = partial(clip_place, prefix=f"{text.prefix}text_model." if full else text.prefix)
    return {part: Tensors(named, path, places[part]) for part, named in by_part.items() if part not in replaced}


def unused(key: str, text: Text) -> bool:
    """Tell whether a file's tensor is of no use to its text encoder: of a layer after the last, or a projection."""
    name = key.removeprefix(text.prefix)
    block = re.match(r"transformer\.resblocks\.(\d+)\.", name)
    beyond = block is not None and int(block[1]) >= text.config["num_hidden_layers"]
    return beyond or (name.startswith("text_projection") and text.kind == TEXT[0])


def tokenizers(texts: Mapping[str, Text], folder: str | Path | None) -> dict[str, dict[str, bytes]]:
    """Return the files of each text encoder's tokenizer: the vocabularies in `folder`, or in tokenizers' folders in it.

    Raises:
        LdmrtError: There is no folder, or no vocabulary of CLIP or T5 in it.
    """
    if folder is None:
        expected = "a folder with CLIP's vocab.json and merges.txt"
        t5 = any(text.kind == T5 for text in texts.values())
        hint = f"--tokenizer FOLDER, of {OF_T5 if t5 else 'any Stable Diffusion'} in diffusers' layout"
        raise LdmrtError("tokenizer", "a single file holds no tokenizer", expected=expected, hint=hint)
    folder = Path(folder)
    nested = folder / "tokenizer"
    files = read_tokenizer("tokenizer", nested if nested.is_dir() else folder)
    vocabulary: dict[str, bytes] = {
        name: files[name] for name in ("vocab.json", "merges.txt", "tokenizer.json") if name in files
    }
    by_part: dict[str, dict[str, bytes]] = {}
    for part, text in texts.items():
        name = part.replace("text_encoder", "tokenizer")
        if text.kind == T5:
            by_part[name] = _t5_tokenizer(name, folder)
            continue
        special = {"bos_token": START, "eos_token": END, "pad_token": text.pad, "unk_token": END}
        length = {"model_max_length": text.config["max_position_embeddings"], "tokenizer_class": "CLIPTokenizer"}
        configs = {"special_tokens_map.json": special, "tokenizer_config.json": {**special, **length}}
        files = {name: (json.dumps(content, indent=2) + "\n").encode() for name, content in configs.items()}
        by_part[name] = {**vocabulary, **files}
    return by_part


def _t5_tokenizer(part: str, folder: Path) -> dict[str, bytes]:
    """Return the files of T5's tokenizer, in the folder that Stable Diffusion 3 or FLUX.1 has for it."""
    for number in (3, 2):
        place = folder / f"tokenizer_{number}"
        if place.is_dir() and is_unigram(files := read_tokenizer(part, place)):
            return files
    problem, expected = f"no tokenizer of T5 in {folder}", "one in its folder tokenizer_2 or tokenizer_3"
    hint = f"--tokenizer FOLDER, of {OF_T5} in diffusers' layout"
    raise LdmrtError(part, problem, expected=expected, hint=hint)
