"""Merge LoRA files into the weights of networks."""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ldmrt.model.textual_inversion.merge import Embedding, embedding_of
from ldmrt.model.weights.mapping import release
from ldmrt.model.weights.unread import numbers, unread
from ldmrt.model.weights.weights import finite
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.lora.files import LoraFile
from ldmrt.runtime.files.lora.placing import placed
from ldmrt.runtime.files.lora.reading import Lora as Layers
from ldmrt.runtime.files.lora.reading import Step, changed, lora_of, refuse_no_lora, split_words
from ldmrt.runtime.files.reading import JsonObject

from .describe import described
from .files import read_tensors, to_numpy


@dataclass(frozen=True)
class Lora(Layers):
    """Holds a file, with the textual inversions that came with it."""

    embeddings: tuple[Embedding, ...] = ()


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
    refuse_no_lora(Path(path))
    file, tensors, metadata = read_tensors(Path(path))
    words, rest = split_words(tensors)
    embeddings = (embedding_of(content, file, word, name=f"{file.name}:{word}") for word, content in words.items())
    opened = LoraFile.of(file, {key: to_numpy(value) for key, value in rest.items()}, metadata)
    inversions = tuple(embeddings)
    lora = lora_of(opened, words=bool(inversions))
    return Lora(lora.name, lora.sha256, lora.layers, embeddings=inversions)


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
    descriptions = {component: described(network) for component, network in networks.items()}
    plan: dict[tuple[str, str], list[Step]] = defaultdict(list)
    record = []
    for lora, factor in loras:
        if not math.isfinite(factor):
            raise LdmrtError("lora", f"invalid weight of {lora.name}", expected="a finite number", found=factor)
        layers = placed(lora.name, lora.layers, descriptions)
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


def _change(parameter: nn.Parameter, steps: Sequence[Step], kind: str, *, keep: bool) -> None:
    """Merge what files add to one weight or bias."""
    if all((layer.delta if kind == "weight" else layer.bias) is None for _, layer, _ in steps):
        return
    stored = parameter.detach()
    dtype = torch.float32 if keep else stored.dtype

    def merged() -> torch.Tensor:
        value = torch.from_numpy(changed(numbers(stored).float().numpy(), steps, kind)).to(dtype)
        release(stored)
        return value

    value = merged()
    if not finite(value):
        raise LdmrtError("lora", f"{steps[-1][1].name} of {steps[-1][0].name} overflows in {stored.dtype}")
    parameter.data = unread(value, merged)
