"""Name the layers of transformers as the original code and XLabs do, where q, k and v are one layer."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ldmrt.model.checkpoint.transformers.names import FLUX_1, Table, original_place, stable_diffusion_3
from ldmrt.model.weights.lazy import Lazy
from ldmrt.runtime.bundle.stage_of_configs import FLUX, SD3
from ldmrt.runtime.files.lora.rows import Target

# XLabs' attention processors have layers of their own beside those of Black Forest Labs' blocks: 1 reads the tokens of
# the image, 2 those of the text, and q, k and v of a single block are without its MLP.
XLABS = {
    "img_attn.qkv": "qkv_lora1", "img_attn.proj": "proj_lora1", "txt_attn.qkv": "qkv_lora2",
    "txt_attn.proj": "proj_lora2", "linear1": "qkv", "linear2": "proj",
}  # fmt: skip
MLP = "proj_mlp"


def original_targets(network: nn.Module) -> dict[str, Target]:
    """Return what the layers of a transformer's LoRA are for, by their original names; nothing for other networks."""
    kind = type(network).__name__
    if kind == SD3:
        config: Any = network.config
        return _targets(network, stable_diffusion_3(config.num_layers))
    return _with_xlabs(_targets(network, FLUX_1)) if kind == FLUX else {}


def _targets(network: nn.Module, table: Table) -> dict[str, Target]:
    """Return the target of each layer, of whose numbered rows the table takes those of each module."""
    counts = {key.rpartition(".")[0]: len(value) for key, value in network.named_parameters()}
    layers: dict[str, list[str]] = defaultdict(list)
    for module in counts:
        layers[original_place(f"{module}.weight", table)[0].rpartition(".")[0]].append(module)
    targets = {}
    for layer, modules in layers.items():
        numbers = torch.arange(sum(counts[module] for module in modules))
        stored = Lazy(tuple(numbers.shape), numbers.dtype, numbers.clone)
        rows = {module: original_place(f"{module}.weight", table)[1](stored).view().numpy() for module in modules}
        targets[layer] = Target(rows)
    return targets


def _with_xlabs(targets: Mapping[str, Target]) -> dict[str, Target]:
    """Add XLabs' names of the layers that have some."""
    named = {}
    for layer, target in targets.items():
        kind, _, place = layer.partition(".")
        number, _, part = place.partition(".")
        if part in XLABS:
            rows = {module: rows for module, rows in target.rows.items() if not module.endswith(MLP)}
            named[f"{kind}.{number}.{XLABS[part]}"] = Target(rows)
    return {**targets, **named}
