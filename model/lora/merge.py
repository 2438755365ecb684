"""Read LoRA files and their kin in the spellings that trainers write, and merge them into weights."""

import math
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ldmrt.model.textual_inversion.merge import Embedding, embedding_of
from ldmrt.model.weights.weights import finite
from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.runtime.files.reading import JsonObject, sha256
from ldmrt.runtime.files.recognise import (
    BUNDLE,
    CHECKPOINT,
    CONTROLNET,
    EMBEDDING,
    LORA,
    TRANSFORMER,
    refuse_other,
)

from .files import LONGEST, LoraFile, noted_scale, open_lora, refuse
from .layers import Layer
from .names import CONTROL, PEFT, flat, other_kind, place, split
from .parts import all_finite, build, lacks
from .placing import placed

BUNDLED = re.compile(r"bundle_emb\.(.+)\.(string_to_param\.\*|emb_params|clip_l|clip_g)")


@dataclass(frozen=True)
class Lora:
    """Holds a file, with its layers under (component, the module's name with "_" for ".")."""

    name: str
    sha256: str
    layers: Mapping[tuple[str, str], Layer] = field(repr=False)
    embeddings: tuple[Embedding, ...] = ()  # textual inversions that came with it


def read_lora(path: str | Path) -> Lora:
    """Read a file of kohya's scripts, LyCORIS (LoCon, LoHa, LoKr, full, norms), diffusers or PEFT, DoRA included.

    Args:
        path: The file, or a folder with one.

    Returns:
        Its layers, and the textual inversions that came with them. Where it holds no alpha and nothing notes one, alpha
        is taken to be the rank, with a warning.

    Raises:
        LdmrtError: The file is missing, damaged, not finite, or of a kind that is not merged, which is named.
    """
    refuse_other("lora", Path(path), LORA, BUNDLE, CHECKPOINT, CONTROLNET, EMBEDDING, TRANSFORMER)
    opened = open_lora(Path(path))
    embeddings, rest = _bundled(opened)
    parts = _parts(opened.path, rest)
    misshapen, unscaled = [], []
    layers: dict[tuple[str, str], Layer] = {}
    for name, tensors in parts.items():
        component, module = place(name)
        noted = partial(noted_scale, opened.notes.get(component), module)
        layer = build(name, tensors, noted)
        if layer is None:
            shapes = " and ".join(f"{part} {tuple(value.shape)}" for part, value in tensors.items())
            misshapen.append(f"{name} of {shapes}")
            continue
        if not (math.isfinite(layer.scale) and all_finite(tensors)):
            raise LdmrtError("lora", f"{name} in {opened.path} is not finite", hint="use another copy of the file")
        if PEFT in name and "alpha" not in tensors and noted(1) is None:
            unscaled.append(name)
        key = (component, flat(module))
        if key in layers:
            raise LdmrtError("lora", f"{opened.path} holds one layer twice", found=f"{layers[key].name} and {name}")
        layers[key] = layer
    refuse(opened.path, misshapen, len(parts), "layers", "have factors that do not fit each other")
    if not layers and not embeddings:
        raise LdmrtError("lora", f"{opened.path} holds no LoRA", found="no tensors")
    if unscaled:
        message = (
            f"lora: {opened.path} has no alpha and no adapter_config.json beside it; alpha is taken to be the rank"
        )
        warnings.warn(message, LdmrtWarning, stacklevel=2)
    return Lora(opened.path.name, sha256(opened.path), layers, embeddings)


def merge(
    networks: Mapping[str, nn.Module], loras: Sequence[tuple[Lora, float]], *, unrounded: Collection[str] = ()
) -> JsonObject:
    """Add every file, times its weight, to the weights of networks, in place.

    All is added in float32 and rounded once, to the dtype that a weight had. Names and shapes are checked before
    anything is changed; a weight that would not be finite is refused when its turn comes.

    Args:
        networks: The networks by the names of a checkpoint's parts.
        loras: The files, each with the factor of all its differences.
        unrounded: Networks whose changed weights stay float32.

    Returns:
        The record for a manifest: {"loras": [{"file", "sha256", "weight", "layers"}]}.

    Raises:
        LdmrtError: A file does not fit the networks, or a weight overflows.
    """
    parameters = {component: dict(network.named_parameters()) for component, network in networks.items()}
    plan: dict[tuple[str, str], list[tuple[Lora, Layer, float]]] = defaultdict(list)
    record = []
    for lora, factor in loras:
        if not math.isfinite(factor):
            raise LdmrtError("lora", f"invalid weight of {lora.name}", expected="a finite number", found=factor)
        layers = placed(lora.name, lora.layers, networks)
        for (component, module), layer in layers.items():
            plan[component, module].append((lora, layer, factor))
        counts = dict(Counter(component for component, _ in layers))
        record.append({"file": lora.name, "sha256": lora.sha256, "weight": factor, "layers": counts})
    with torch.no_grad():
        for (component, module), steps in plan.items():
            for kind in ("weight", "bias"):
                if (parameter := parameters[component].get(f"{module}.{kind}")) is not None:
                    _change(parameter, steps, kind, keep=component in unrounded)
    return {"loras": record}


def _change(parameter: nn.Parameter, steps: Sequence[tuple[Lora, Layer, float]], kind: str, *, keep: bool) -> None:
    """Merge what files add to one weight or bias."""
    value = before = parameter.detach().float()
    for lora, layer, factor in steps:
        if kind == "weight" and layer.delta is not None:
            value = layer.merged(value, factor, before)
        elif kind == "bias" and layer.bias is not None:
            value = value + factor * layer.bias.float()
        # Weights whose squares overflow when summed would make the network's results infinite
        if value is not before and not value.norm().isfinite():
            hint = f"a smaller weight than {factor:g}, or another copy of the file"
            raise LdmrtError("lora", f"{layer.name} of {lora.name} makes the weights overflow", hint=hint)
    if value is before:
        return
    rounded = value if keep else value.to(parameter.dtype)
    if not finite(rounded):
        raise LdmrtError("lora", f"{steps[-1][1].name} of {steps[-1][0].name} overflows in {parameter.dtype}")
    parameter.data = rounded


def _bundled(opened: LoraFile) -> tuple[tuple[Embedding, ...], dict[str, Tensor]]:
    """Split off the textual inversions that kohya's files and OneTrainer's bring with them."""
    words: dict[str, dict[str, Tensor]] = defaultdict(dict)
    rest = {}
    for key, value in opened.tensors.items():
        if match := BUNDLED.fullmatch(key):
            words[match[1]][match[2] if match[2].startswith("clip") else "emb_params"] = value
        else:
            rest[key] = value
    path = opened.path
    embeddings = (embedding_of(content, path, word, name=f"{path.name}:{word}") for word, content in words.items())
    return tuple(embeddings), rest


def _parts(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Sort the tensors of a file by layer, as it spells that, and by part; each layer is whole and of one kind."""
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    unknown = []
    for key, value in tensors.items():
        if kind := other_kind(key, value.ndim):
            raise LdmrtError("lora", f"unsupported {kind} file {path}", found=key[:LONGEST])
        if (names := split(key)) is None:
            unknown.append(key)
            continue
        layer, part = names
        if part in layers[layer]:
            raise LdmrtError("lora", f"{path} holds two tensors for the {part} of one layer", found=key[:LONGEST])
        layers[layer][part] = value
    if layers and (norms := [key for key in unknown if CONTROL.search(key)]):
        hint = "the whole model, such as FLUX.1-Canny-dev or FLUX.1-Depth-dev"
        raise LdmrtError("lora", f"unsupported control LoRA {path}", found=norms[0][:LONGEST], hint=hint)
    refuse(path, unknown, len(tensors), "tensors", "are no part of a LoRA")
    lacking: dict[str, list[str]] = defaultdict(list)
    for name, parts in layers.items():
        if problem := lacks(parts):
            lacking[problem].append(name)
    for problem, lone in lacking.items():
        refuse(path, lone, len(layers), "layers", problem)
    return layers
