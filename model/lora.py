"""LoRA files (Hu et al. 2021, arXiv:2106.09685), read in the spellings that trainers write and merged into weights."""

import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.errors import LdmrtWarning, first_line
from ldmrt.runtime.files import sha256
from ldmrt.runtime.recognise import BUNDLE, CHECKPOINT, CONTROLNET, EMBEDDING, LORA, refuse_other

from .config import read_json
from .ldm_names import ldm_modules
from .unet import UNetConfig

# How the names in a file begin, and whose weights they then name. What begins otherwise names its network by its parts.
PREFIXES = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "diffusion_model.": "unet",
}
PEFT = "base_model.model."  # PEFT's own files begin with it, or have it after the network

# lora_down (kohya), lora_A (PEFT), to_q_lora.down (diffusers of 2023), .lora.down and .lora_linear_layer.down (since)
PART = re.compile(
    r"(?P<module>.+?)(?:\.lora_(?P<kohya>down|up|mid|A|B)(?:\.[^.]+)?"
    r"|(?:_lora|\.lora|\.lora_linear_layer)\.(?P<diffusers>down|up))\.weight"
    r"|(?P<scaled>.+)\.alpha"
)
# What else is shared under the name of LoRA, by what its tensors are called
OTHERS = {
    r"hada_": "LoHa",
    r"lokr_": "LoKr",
    r"dora_scale|lora_magnitude_vector": "DoRA",
    r"\.oft_": "OFT",
    r"\.on_input": "(IA)³",
    r"\.a1\.weight": "GLoRA",
    r"\.diff(_b)?$": "full-difference",
}


@dataclass(frozen=True)
class Layer:
    """What a file adds to one weight: scale * up @ down, for a convolution perhaps with `mid` between the two."""

    name: str  # as the file spells it
    down: Tensor  # (rank, in), or (rank, in, height, width)
    up: Tensor  # (out, rank), or (out, rank, 1, 1)
    mid: Tensor | None = None  # (rank, rank, height, width), and then `down` is 1x1
    scale: float = 1.0  # alpha / rank

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in, height, width) of what is added; 1x1 is a matrix."""
        kernel = self.down if self.mid is None else self.mid
        return (self.up.shape[0], self.down.shape[1], *_four(kernel).shape[2:])

    def fits(self) -> bool:
        """Whether the factors can be multiplied."""
        chain = [self.up, self.down] if self.mid is None else [self.up, self.mid, self.down]
        if not all(factor.ndim in (2, 4) and factor.numel() for factor in chain):
            return False
        pointwise = all(_four(factor).shape[2:] == (1, 1) for factor in (chain[0], *chain[2:]))  # all but the kernel
        return pointwise and all(left.shape[1] == right.shape[0] for left, right in pairwise(chain))

    def delta(self) -> Tensor:
        """What is added at weight 1: (out, in, height, width), float32."""
        up, down = _four(self.up.float()), _four(self.down.float())
        if self.mid is not None:
            down = torch.einsum("pqhw,qi->pihw", _four(self.mid.float()), down[:, :, 0, 0])
        return self.scale * torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down)


@dataclass(frozen=True)
class Lora:
    """A file, with its layers under (component, the module's name with "_" for ".")."""

    name: str
    sha256: str
    layers: Mapping[tuple[str, str], Layer] = field(repr=False)


def read_lora(path: str | Path) -> Lora:
    """A .safetensors file of kohya's scripts, LyCORIS (LoCon), diffusers or PEFT; any other kind is refused by name."""
    path = Path(path)
    refuse_other("lora", path, LORA, BUNDLE, CHECKPOINT, CONTROLNET, EMBEDDING)
    tensors, notes = _read(path)
    parts = _parts(path, tensors)
    layers: dict[tuple[str, str], Layer] = {}
    misshapen, unscaled = [], []
    for module, keys in parts.items():
        component, dotted = _place(module)
        found = {part: tensors[key] for part, key in keys.items()}
        alpha = found.pop("alpha", None)
        layer = Layer(module, found["down"], found["up"], found.get("mid"))
        if not layer.fits() or (alpha is not None and alpha.numel() != 1):
            misshapen.append(f"{module} of down {tuple(layer.down.shape)} and up {tuple(layer.up.shape)}")
            continue
        rank = len(layer.down)
        scale = float(alpha) / rank if alpha is not None else _peft_scale(notes.get(component), dotted, rank)
        if scale is None and PEFT in module:
            unscaled.append(module)
        layer = replace(layer, scale=1.0 if scale is None else scale)
        if not all(math.isfinite(layer.scale) and factor.float().isfinite().all() for factor in found.values()):
            raise LdmrtError("lora", f"{module} in {path} is not finite", hint="use another copy of the file")
        name = (component, _flat(dotted))
        if name in layers:
            raise LdmrtError("lora", f"{path} holds one layer twice", found=f"{layers[name].name} and {module}")
        layers[name] = layer
    _refuse(path, misshapen, len(parts), "layers", "have factors that do not fit each other")
    if unscaled:
        message = f"lora: {path} has no alpha and no adapter_config.json beside it; alpha is taken to be the rank"
        warnings.warn(message, LdmrtWarning, stacklevel=2)
    return Lora(path.name, sha256(path), layers)


def merge(networks: Mapping[str, nn.Module], loras: Sequence[tuple[Lora, float]]) -> dict[str, Any]:
    """Add every file, times its weight, to the weights of the networks, which have the names of a checkpoint's parts.

    All is checked before anything is changed. Returns what a manifest says of it.
    """
    states = {component: network.state_dict() for component, network in networks.items()}
    places = {component: _places(network) for component, network in networks.items()}
    plan: list[tuple[Tensor, Layer, float]] = []
    record = []
    for lora, factor in loras:
        if not math.isfinite(factor):
            raise LdmrtError("lora", f"impossible weight of {lora.name}", expected="a finite number", found=factor)
        lost, unfit = [], []
        taken: dict[tuple[str, str], Layer] = {}
        for (component, module), layer in lora.layers.items():
            key = places.get(component, {}).get(module)
            if key is None:
                lost.append(layer.name)
                continue
            if (component, key) in taken:
                both = f"{taken[component, key].name} and {layer.name}"
                raise LdmrtError("lora", f"{lora.name} holds one layer twice", found=both)
            taken[component, key] = layer
            weight = states[component][key]
            if layer.shape != _four(weight).shape:
                unfit.append(f"{layer.name} of {layer.shape} for {tuple(weight.shape)}")
            plan.append((weight, layer, factor))
        hint = "a LoRA fits the family that it was trained on: 1.x, 2.x or XL"
        _refuse(lora.name, lost, len(lora.layers), "layers", f"have no place in {', '.join(networks)}", hint)
        _refuse(lora.name, unfit, len(lora.layers), "layers", "have another shape than the weight", hint)
        counts = dict(Counter(component for component, _ in taken))
        record.append({"file": lora.name, "sha256": lora.sha256, "weight": factor, "layers": counts})
    for weight, layer, factor in plan:
        weight.copy_(weight.float() + factor * layer.delta().reshape(weight.shape))
    return {"loras": record}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """The tensors of a file, and what PEFT noted of each component's adapter.

    diffusers keeps the notes inside the file, PEFT in one beside it, which is of the one network that the file is of.
    """
    if not path.is_file():
        raise LdmrtError("lora", "missing file", expected=path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            inside = dict(json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}")))
    except Exception as error:  # safetensors raises its own class
        found = first_line(error)
        raise LdmrtError("lora", f"cannot read {path}", expected="a whole safetensors file", found=found) from None
    beside = path.with_name("adapter_config.json")
    if any(key.startswith(PEFT) for key in tensors) and beside.is_file():
        return tensors, dict.fromkeys(PREFIXES.values(), read_json(beside, "lora"))
    notes: dict[str, dict[str, Any]] = {}
    for key, value in inside.items():
        component, _, name = key.partition(".")
        notes.setdefault(component, {})[name] = value
    return tensors, notes


def _parts(path: Path, keys: Collection[str]) -> dict[str, dict[str, str]]:
    """The keys of a file by module, as it spells that, and by part: down, up, and perhaps mid and alpha."""
    for key in keys:
        for mark, kind in OTHERS.items():
            if re.search(mark, key):
                raise LdmrtError("lora", f"{path} is a {kind} file, not LoRA", found=key)
    parts: dict[str, dict[str, str]] = {}
    unknown = []
    for key in keys:
        if (match := PART.fullmatch(key)) is None:
            unknown.append(key)
            continue
        part = match["kohya"] or match["diffusers"] or "alpha"
        part = {"A": "down", "B": "up"}.get(part, part)
        if parts.setdefault(match["module"] or match["scaled"], {}).setdefault(part, key) != key:
            raise LdmrtError("lora", f"{path} holds two tensors for the {part} of one layer", found=key)
    _refuse(path, unknown, len(keys), "tensors", "are no part of a LoRA")
    lone = [module for module, found in parts.items() if not {"down", "up"} <= found.keys()]
    _refuse(path, lone, len(parts), "layers", "lack their down or their up")
    if not parts:
        raise LdmrtError("lora", f"{path} holds no LoRA", found="no tensors")
    return parts


def _place(module: str) -> tuple[str, str]:
    """The component that a name in a file belongs to, and the module in it; kohya's names stay underscored."""
    name = module.removeprefix(PEFT)
    component = "text_encoder" if name.startswith(("text_model.", "encoder.")) else "unet"
    if prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), ""):
        component, name = PREFIXES[prefix], name.removeprefix(prefix).removeprefix(PEFT)
    head, _, tail = name.replace(".processor.", ".").rpartition(".")
    if head and component == "unet" and tail == "to_out":  # diffusers' attention processors had names of their own
        tail = "to_out.0"
    elif head and component != "unet" and tail in ("to_q", "to_k", "to_v", "to_out"):
        tail = tail.removeprefix("to_") + "_proj"
    return component, f"{head}.{tail}" if head else tail


def _flat(module: str) -> str:
    """A module's name as kohya writes it; transformers 5 dropped the prefix of a text encoder's weights."""
    return module.replace(".", "_").removeprefix("text_model_")


def _places(network: nn.Module) -> dict[str, str]:
    """Every name that a file can give to a weight of the network -> its key in the state dict."""
    weights = {
        key.removesuffix(".weight"): key
        for key, value in network.state_dict().items()
        if key.endswith(".weight") and value.ndim in (2, 4)
    }
    places = {_flat(module): key for module, key in weights.items()}
    config = getattr(network, "config", None)
    if isinstance(config, UNetConfig):
        for ours, theirs in ldm_modules(config).items():
            for module, key in weights.items():
                if f"{module}.".startswith(f"{ours}."):
                    places[_flat(theirs + module.removeprefix(ours))] = key
    return places


def _peft_scale(notes: Mapping[str, Any] | None, module: str, rank: int) -> float | None:
    """alpha / rank by PEFT's rules; None where nothing is noted: it is then 1, as diffusers has it."""
    if not notes or notes.get("lora_alpha") is None:
        return None
    try:
        alpha = notes["lora_alpha"]
        for pattern, value in (notes.get("alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                alpha = value
                break
        return float(alpha) / (math.sqrt(rank) if notes.get("use_rslora") else rank)
    except (re.error, AttributeError, TypeError, ValueError) as error:
        raise LdmrtError("lora", f"impossible notes on {module}", found=first_line(error)) from None


def _four(factor: Tensor) -> Tensor:
    """A matrix as a 1x1 convolution."""
    return factor[:, :, None, None] if factor.ndim == 2 else factor


def _refuse(
    file: str | Path, names: Sequence[str], total: int, what: str, problem: str, hint: str | None = None
) -> None:
    """One error for all of `names`, if there are any: how many, and the first few."""
    if names:
        found = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise LdmrtError("lora", f"{len(names)} of {total} {what} of {file} {problem}", found=found, hint=hint)
