"""Read a transformer in a file of its own, or with its autoencoder and its text encoders beside it.

Its names are the original ones or diffusers'. Its config follows from its tensors.
"""

import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ldmrt.model.library.t5 import T5
from ldmrt.model.weights.lazy import Lazy, Place
from ldmrt.model.weights.weights import Tensors
from ldmrt.runtime.bundle.graphs import TRANSFORMER
from ldmrt.runtime.bundle.stage_of_configs import FLUX, SD3
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject

from ..families import Text
from ..file_notes import without_leftovers
from ..folder import TEXT, Source
from ..original_names import VAE, clip_place, vae_place
from . import configs
from .names import FLUX_1, diffusers_place, original_place, stable_diffusion_3

VAES = (VAE, "vae.")  # how the names of an autoencoder's weights begin: Stability AI's, ComfyUI's
BESIDE = (*VAES, "text_encoders.")  # names of other parts, beside a transformer's without a prefix
UNREAD = ("logit_scale", "position_ids")  # of CLIP, which no image depends on


@dataclass(frozen=True)
class Names:
    """Describes how files name the weights of one class: where a weight stands, and by what name a file is known."""

    kind: str  # the class in diffusers
    anchor: str  # a weight that files of no other class have
    blocks: dict[str, str]  # the kinds of blocks by their names in diffusers' class
    original: bool


_SINGLE = "single_transformer_blocks"
NAMES = (
    Names(SD3, "joint_blocks.0.x_block.attn.qkv.weight", {"transformer_blocks": "joint_blocks"}, True),
    Names(
        FLUX, "double_blocks.0.img_mod.lin.weight",
        {"transformer_blocks": "double_blocks", _SINGLE: "single_blocks"}, True,
    ),
    Names(FLUX, f"{_SINGLE}.0.proj_mlp.weight", {"transformer_blocks": "transformer_blocks", _SINGLE: _SINGLE}, False),
    Names(SD3, "transformer_blocks.0.attn.add_q_proj.weight", {"transformer_blocks": "transformer_blocks"}, False),
)  # fmt: skip


@dataclass(frozen=True)
class TransformerFile:
    """Holds a transformer that a file has."""

    kind: str
    config: JsonObject
    tensors: Tensors


def _names_of(tensors: Collection[str]) -> tuple[Names, str] | None:
    """Return how the names of a file's transformer are, and how they begin; None where it holds no known one."""
    for names in NAMES:
        prefixes = [key.removesuffix(names.anchor) for key in tensors if key.endswith(names.anchor)]
        if fitting := [prefix for prefix in prefixes if not prefix or prefix.endswith(".")]:
            return names, min(fitting, key=len)
    return None


def find_transformer(
    path: Path, tensors: Mapping[str, Lazy], own: JsonObject | None = None
) -> tuple[TransformerFile, dict[str, Lazy]] | None:
    """Return the transformer of a file and the tensors that are not its own; None where it holds no known one.

    Args:
        path: The file, for messages.
        tensors: All its tensors, by their names in it.
        own: The config of the transformer that this one takes the place of, for what no shape tells.

    Raises:
        LdmrtError: A weight that the config follows from is missing or has another number of axes.
    """
    if (known := _names_of(tensors)) is None:
        return None
    names, prefix = known
    other = () if prefix else BESIDE
    inside = {key: t for key, t in tensors.items() if key.startswith(prefix) and not key.startswith(other)}
    bare = [key.removeprefix(prefix) for key in inside]
    blocks = {ours: configs.depth_of(bare, theirs) for ours, theirs in names.blocks.items()}
    place: Callable[[str], Place] = partial(diffusers_place, prefix=prefix)
    if names.original:
        table = FLUX_1 if names.kind == FLUX else stable_diffusion_3(blocks["transformer_blocks"])
        place = partial(original_place, table=table, prefix=prefix)

    def shape(key: str, axes: int) -> tuple[int, ...]:
        """Return the shape of one of the network's weights."""
        name, change = place(key)
        if name not in inside:
            raise LdmrtError(TRANSFORMER, f"1 tensors are missing from {path}", expected=name)
        found = change(inside[name]).shape
        if len(found) != axes:
            raise LdmrtError(TRANSFORMER, f"wrong shape of {name} in {path}", expected=f"{axes} axes", found=found)
        return found

    telling = configs.telling(names.kind, blocks["transformer_blocks"])
    held = {key for key in telling if place(key)[0] in inside}
    config = configs.config_of_shapes(names.kind, blocks, held, shape, own)
    found = TransformerFile(names.kind, config, Tensors(without_leftovers(inside, path, set()), path, place))
    return found, {key: tensor for key, tensor in tensors.items() if key not in inside}


def read_transformer(
    path: Path, tensors: Mapping[str, Lazy], replaced: Collection[str] = (), left_out: Collection[str] = ()
) -> tuple[Source, dict[str, Text]] | None:
    """Describe the checkpoint in a transformer's file; None where the file holds no known one.

    Args:
        path: The file, for messages.
        tensors: All its tensors, by their names in it.
        replaced: Parts that come from elsewhere and may be missing.
        left_out: Parts that are not read, as if the model had none.

    Returns:
        All but the tokenizers, and the text encoders whose tokenizers they are.

    Raises:
        LdmrtError: Parts are missing, or tensors are missing or unexpected.
    """
    if (found := find_transformer(path, tensors)) is None:
        return None
    transformer, rest = found
    family = configs.FAMILIES[transformer.kind]
    if left_out and not family.optional:
        raise LdmrtError("checkpoint", "no T5 can be left out of this model", expected="no --without-t5")
    texts = {part: text for part, text in family.texts.items() if part not in left_out}
    parts = _parts(path, rest, family)
    if missing := [part for part in ("vae", *texts) if part not in parts and part not in replaced]:
        raise _missing(path, missing, family)
    networks = {
        TRANSFORMER: (transformer.kind, transformer.config),
        "vae": ("AutoencoderKL", family.vae),
        **{part: (text.kind, text.config) for part, text in texts.items()},
    }
    scheduler = configs.scheduler_of(transformer.kind, transformer.config)
    index = configs.index_of(transformer.kind, transformer.config, left_out)
    return Source(index, networks, {}, scheduler, {**parts, TRANSFORMER: transformer.tensors}.__getitem__), texts


def _parts(path: Path, tensors: Mapping[str, Lazy], family: configs.TransformerFamily) -> dict[str, Tensors]:
    """Split the tensors beside a transformer among the other parts; a tensor of no part is an error."""
    kept = {key: t for key, t in without_leftovers(tensors, path, set()).items() if not key.endswith(UNREAD)}
    parts: dict[str, Tensors] = {}
    levels = len(family.vae["block_out_channels"])
    for prefix in VAES:
        if named := {key: kept.pop(key) for key in list(kept) if key.startswith(prefix)}:
            parts["vae"] = Tensors(named, path, partial(_vae_place, levels=levels, prefix=prefix))
    for part, text in family.texts.items():
        named = {key: kept.pop(key) for key in list(kept) if key.startswith(text.prefix)}
        if text.kind == T5 and named:
            parts[part] = Tensors({key.removeprefix(text.prefix): tensor for key, tensor in named.items()}, path)
        elif named:
            if text.kind == TEXT[0]:
                named.pop(f"{text.prefix}text_projection.weight", None)  # which its states do not go through
            parts[part] = Tensors(named, path, partial(text_place, prefix=text.prefix))
    if kept:
        raise LdmrtError("checkpoint", f"{path} holds {len(kept)} unexpected tensors", found=min(kept))
    return parts


def _vae_place(key: str, levels: int, prefix: str) -> Place:
    """Return the place of an autoencoder's weight under the file's own prefix."""
    name, change = vae_place(key, levels)
    return prefix + name.removeprefix(VAE), change


def text_place(key: str, prefix: str) -> Place:
    """Return the place of a weight of CLIP, whose projection stands beside the text model."""
    return clip_place(key, prefix if key.startswith("text_projection") else f"{prefix}text_model.")


def _missing(path: Path, missing: Collection[str], family: configs.TransformerFamily) -> LdmrtError:
    """Return the error for parts that neither the file holds nor an option gives."""
    ways = ["--vae FILE" if part == "vae" else f"--text-encoder {part}=FILE" for part in missing]
    without = " or --without-t5" if set(missing) & set(family.optional) else ""
    hint = f"{' '.join(ways)}{without}; or a folder in diffusers' layout with --transformer {shlex.quote(str(path))}"
    problem = f"{len(missing)} parts are missing from {path}"
    return LdmrtError("checkpoint", problem, expected=", ".join(missing), hint=hint)
