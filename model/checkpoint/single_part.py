"""Read one network from its own file, a folder or a whole checkpoint: a part of a model, or a ControlNet."""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from ldmrt.model.networks.controls.controlnet import ControlNetConfig
from ldmrt.model.networks.unet import UNetConfig
from ldmrt.model.weights.lazy import Lazy, Place
from ldmrt.model.weights.weights import Tensors, bare, open_weights
from ldmrt.runtime.bundle.graphs import TRANSFORMER
from ldmrt.runtime.bundle.stage_of_configs import FLUX
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject, read_json
from ldmrt.runtime.files.recognise import refuse_gguf

from . import families
from .families import CLIP, OPEN_CLIP, Family, Text
from .file_notes import without_leftovers
from .folder import OLDER, PARTS, T5, T5_PARTS, TEXT, Source, part_of_folder
from .original_names import VAE, clip_place, controlnet_place, ldm_modules, open_clip_place, vae_place
from .single_file import unused
from .transformers.configs import BY_CHANNELS, flux_pipeline
from .transformers.files import find_transformer

VAE_ANCHOR, HINT = "decoder.conv_in.weight", "input_hint_block.0.weight"
CLIP_ANCHOR, OPEN_CLIP_ANCHOR = "embeddings.position_embedding.weight", "positional_embedding"
COND, CONTEXT = "controlnet_cond_embedding.conv_in.weight", "attn2.to_k.weight"
T5_ANCHOR = "encoder.final_layer_norm.weight"
VISION = re.compile(r"(^|\.)(visual|vision_model|visual_projection)\.")  # CLIP's other half
BUFFERS = re.compile(r"(^|\.)(position_ids|logit_scale|attn_mask)$")
# Controls of other kinds, by how a tensor's name begins. "difference" marks weights to be added to the U-Net's.
OTHER_CONTROLS = {
    "lllite_": "ControlNet-LLLite",
    "lora_controlnet": "Control-LoRA",
    "difference": "ControlNet difference",
    "task_embedding": "ControlNet-Union",
}


def with_part(source: Source, part: str, path: Path, variant: str | None = None) -> Source:
    """Put an autoencoder, a transformer or a text encoder from elsewhere in the place of a checkpoint's own, if any.

    Args:
        source: The checkpoint, which is not changed.
        part: "vae", "transformer", "text_encoder", "text_encoder_2" or "text_encoder_3".
        path: A folder with a config.json, a folder with such a folder in it, or a file of weights.
        variant: The variant of the weights to read from a folder.

    Raises:
        LdmrtError: The weights are missing or damaged, or nothing says their config.
    """
    usual = {"vae": "AutoencoderKL", TRANSFORMER: "", T5_PARTS[0]: T5}.get(part, TEXT[0])
    kind, config = source.networks.get(part, (usual, None))
    if part == TRANSFORMER and "unet" in source.networks:
        problem, expected = "this checkpoint has a U-Net", "a Stable Diffusion 3 or FLUX.1"
        raise LdmrtError(part, problem, expected=expected, hint="leave out --transformer")
    refuse_gguf(part, path)
    if path.is_dir():
        folder = path if (path / "config.json").exists() else path / part
        config = read_json(part, folder / "config.json")
        kind = _class_of(part, config, kind) if part in ("vae", TRANSFORMER) else kind
        tensors = part_of_folder(part, folder, variant)
    elif part == TRANSFORMER:
        kind, config, tensors = _transformer(path, config, kind)
    elif config is None:
        raise LdmrtError(part, f"no config for {path}", hint=f"a folder with the {part}'s config.json")
    elif kind == T5:
        tensors = _t5(part, path)
    else:
        tensors = (_autoencoder if part == "vae" else _text_encoder)(path, config, kind)
    own, index, networks = source.tensors, source.index, {**source.networks, part: (kind, config)}
    if kind == FLUX and index.get("_class_name") in BY_CHANNELS:  # of the channels that its transformer reads
        index = {**index, "_class_name": flux_pipeline(config)}
    return replace(source, index=index, networks=networks, tensors=lambda name: tensors if name == part else own(name))


def _class_of(part: str, config: JsonObject, kind: str) -> str:
    """Return the class in diffusers that a part's config.json names, or `kind`; refuse an unsupported one."""
    named = str(config.get("_class_name") or kind)
    if named not in PARTS[part]:
        raise LdmrtError(part, f"unsupported {named} in config.json", expected=" or ".join(PARTS[part]))
    return OLDER.get(named, named)


def _transformer(path: Path, own: JsonObject | None, kind: str) -> tuple[str, JsonObject, Tensors]:
    """Describe a transformer in a file, alone or in a whole checkpoint: its class, its config and its tensors."""
    tensors = open_weights(TRANSFORMER, path)
    found = find_transformer(path, tensors, own)
    if found is None or found[0].kind != (kind or found[0].kind):
        expected = kind or " or ".join(PARTS[TRANSFORMER])
        first = f"{len(tensors)} tensors, such as {min(tensors, default='none')}" if found is None else found[0].kind
        raise LdmrtError(TRANSFORMER, f"{path} holds no transformer that fits", expected=expected, found=first)
    transformer, _ = found
    return transformer.kind, transformer.config, transformer.tensors


def _t5(part: str, path: Path) -> Tensors:
    """Describe T5's tensors, alone or in a whole checkpoint."""
    tensors = open_weights(part, path)
    prefix = _prefix(part, path, tensors, T5_ANCHOR)
    named = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    return Tensors(named, path)


def controlnet_source(path: Path) -> tuple[JsonObject, Tensors]:
    """Return the config and the tensors of a ControlNet in a file, in diffusers' names or in the original ones.

    The config is that of a config.json beside the file, or of the family whose context has the same width.

    Raises:
        LdmrtError: The file is damaged, or another kind of control, or of no known family.
    """
    tensors = open_weights("controlnet", path)
    for mark, kind in OTHER_CONTROLS.items():
        if any(key.startswith(mark) for key in tensors):
            raise LdmrtError("controlnet", f"unsupported {kind} file {path}", expected="a ControlNet")
    prefix = next((key.removesuffix(HINT) for key in sorted(tensors) if key.endswith(HINT)), None)
    if prefix is None:
        named = {bare(key): tensor for key, tensor in without_leftovers(tensors, path, set()).items()}
        beside = path.with_name("config.json")
        config = read_json("controlnet", beside) if beside.exists() else _controlnet_config(path, tensors, COND)
        return config, Tensors(named, path)
    own = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    named = without_leftovers(own, path, set())
    modules = ldm_modules(UNetConfig.read(_family(path, named).unet))
    place = partial(controlnet_place, modules=modules, prefix=prefix)
    return _controlnet_config(path, named, prefix + HINT), Tensors(named, path, place)


def _controlnet_config(path: Path, tensors: Mapping[str, Lazy], hint: str) -> JsonObject:
    """Make a ControlNet's config of its family's; the weight named `hint` tells the channels of the control image."""
    known = {field.name for field in fields(ControlNetConfig)}
    config = {key: value for key, value in _family(path, tensors).unet.items() if key in known}
    return config | {"conditioning_channels": tensors[hint].shape[1]} if hint in tensors else config


def _family(path: Path, tensors: Mapping[str, Lazy]) -> Family:
    """Return the family whose context is as wide as the one that a ControlNet reads."""
    width = next((tensor.shape[-1] for key, tensor in tensors.items() if key.endswith(CONTEXT)), None)
    family = next((family for family in families.FAMILIES if family.unet["cross_attention_dim"] == width), None)
    if family is None:
        expected, hint = "a ControlNet of Stable Diffusion 1.x, 2.x or XL", "a folder with its config.json"
        found = f"a context of width {width}" if width else f"no weight {CONTEXT}"
        raise LdmrtError("controlnet", f"cannot read {path}", expected=expected, found=found, hint=hint)
    return family


def _autoencoder(path: Path, config: JsonObject, kind: str) -> Tensors:
    """Describe an autoencoder's tensors: diffusers' names or the original ones, alone or in a whole checkpoint."""
    tensors = open_weights("vae", path)
    prefix = _prefix("vae", path, tensors, VAE_ANCHOR)
    named = without_leftovers({key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}, path, set())
    if not any(".mid.block_1." in key for key in named):
        return Tensors({bare(key.removeprefix(prefix)): tensor for key, tensor in named.items()}, path)
    levels = len(config["block_out_channels"])

    def place(key: str) -> Place:
        """Return the place of a weight in this very file."""
        name, change = vae_place(key, levels)
        return prefix + name.removeprefix(VAE), change

    return Tensors(named, path, place)


def _text_encoder(path: Path, config: JsonObject, kind: str) -> Tensors:
    """Describe a text encoder's tensors: names of transformers or of OpenCLIP, alone or in a whole checkpoint."""
    tensors = {key: tensor for key, tensor in open_weights("text_encoder", path).items() if not VISION.search(key)}
    fitting = {key: tensor for key, tensor in tensors.items() if tensor.shape[-1:] == (config["hidden_size"],)}
    original = any(key.endswith(OPEN_CLIP_ANCHOR) for key in fitting)
    prefix = _prefix("text_encoder", path, fitting, OPEN_CLIP_ANCHOR if original else CLIP_ANCHOR)
    root = prefix.removesuffix("text_model.")
    text = Text(root, OPEN_CLIP if original else CLIP, kind, "!", config)
    named = {key: tensor for key, tensor in tensors.items() if key.startswith(root) and not unused(key, text)}
    named = {key: tensor for key, tensor in named.items() if not BUFFERS.search(key)}

    def place(key: str) -> Place:
        """Return the place of a weight in this very file; a projection stands beside the text model."""
        if original:
            return open_clip_place(key, prefix)
        return clip_place(key, root if key.startswith("text_projection") else prefix)

    return Tensors(named, path, place)


def _prefix(part: str, path: Path, tensors: Mapping[str, Lazy], anchor: str) -> str:
    """Return the prefix of the names of a part's weights: the shortest, where there are several."""
    prefixes = [key.removesuffix(anchor) for key in tensors if key.endswith(anchor)]
    if not prefixes:
        expected, first = f"a weight {anchor}", f"{len(tensors)} tensors, such as {min(tensors, default='none')}"
        raise LdmrtError(part, f"{path} holds no {part} that fits", expected=expected, found=first)
    return min(prefixes, key=len)
