"""Name the modules of transformers as the original code does, whose q, k and v are one layer.

The names are those of Stability AI's `MMDiT` and Black Forest Labs' `Flux`, as diffusers converts their checkpoints
(`convert_sd3_transformer_checkpoint_to_diffusers`, `convert_flux_transformer_checkpoint_to_diffusers`).
"""

import re
from collections import defaultdict
from collections.abc import Mapping

from torch import nn

from ldmrt.runtime.bundle.stage_of_configs import FLUX, SD3

from .rows import Target

Names = Mapping[str, str]  # a module of diffusers' class: the layer that it is, or that it is a part of, in its order


def _inside(own: str, original: str, names: Names) -> Names:
    """Put the names of one block below those of the blocks."""
    return {f"{own}.{ours}": f"{original}.{theirs}" for ours, theirs in names.items()}


def _attention(attention: str, q: str, k: str, v: str) -> Names:
    """Name q, k and v of an attention."""
    return dict.fromkeys((q, k, v), f"{attention}.qkv")


IMAGE, TEXT = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
SECOND = ("attn2.to_q", "attn2.to_k", "attn2.to_v")
SD3_NAMES: Names = {
    "pos_embed.proj": "x_embedder.proj",
    "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
    **_inside("transformer_blocks.*", "joint_blocks.*", {
        **_attention("x_block.attn", *IMAGE), **_attention("context_block.attn", *TEXT),
        **_attention("x_block.attn2", *SECOND),
        "attn.norm_q": "x_block.attn.ln_q", "attn.norm_k": "x_block.attn.ln_k",
        "attn.norm_added_q": "context_block.attn.ln_q", "attn.norm_added_k": "context_block.attn.ln_k",
        "attn2.norm_q": "x_block.attn2.ln_q", "attn2.norm_k": "x_block.attn2.ln_k",
        "attn.to_out.0": "x_block.attn.proj", "attn.to_add_out": "context_block.attn.proj",
        "attn2.to_out.0": "x_block.attn2.proj",
        "norm1.linear": "x_block.adaLN_modulation.1", "norm1_context.linear": "context_block.adaLN_modulation.1",
        "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2",
        "ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2",
    }),
}  # fmt: skip
FLUX_NAMES: Names = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    **{
        f"time_text_embed.{embedder}.linear_{number}": f"{name}.{layer}"
        for embedder, name in (
            ("timestep_embedder", "time_in"), ("text_embedder", "vector_in"), ("guidance_embedder", "guidance_in"),
        )
        for number, layer in ((1, "in_layer"), (2, "out_layer"))
    },
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
    **_inside("transformer_blocks.*", "double_blocks.*", {
        **_attention("img_attn", *IMAGE), **_attention("txt_attn", *TEXT),
        "attn.norm_q": "img_attn.norm.query_norm", "attn.norm_k": "img_attn.norm.key_norm",
        "attn.norm_added_q": "txt_attn.norm.query_norm", "attn.norm_added_k": "txt_attn.norm.key_norm",
        "attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj",
        "norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin",
        "ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2",
        "ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2",
    }),
    **_inside("single_transformer_blocks.*", "single_blocks.*", {
        **dict.fromkeys((*IMAGE, "proj_mlp"), "linear1"),
        "attn.norm_q": "norm.query_norm", "attn.norm_k": "norm.key_norm",
        "proj_out": "linear2", "norm.linear": "modulation.lin",
    }),
}  # fmt: skip
# XLabs' attention processors have layers of their own: 1 reads the image's tokens, 2 the text's.
XLABS_NAMES: Names = {
    **_inside("transformer_blocks.*", "double_blocks.*", {
        **dict.fromkeys(IMAGE, "qkv_lora1"), **dict.fromkeys(TEXT, "qkv_lora2"),
        "attn.to_out.0": "proj_lora1", "attn.to_add_out": "proj_lora2",
    }),
    **_inside("single_transformer_blocks.*", "single_blocks.*", dict.fromkeys(IMAGE, "qkv") | {"proj_out": "proj"}),
}  # fmt: skip
SPELLINGS: Mapping[str, tuple[Names, ...]] = {SD3: (SD3_NAMES,), FLUX: (FLUX_NAMES, XLABS_NAMES)}


def original_targets(network: nn.Module) -> dict[str, Target]:
    """Return the modules of a transformer by the original names of their layers; none for other networks.

    Where a layer is modulated for the last time the original code has the shift before the scale, and diffusers'
    AdaLayerNormContinuous the scale before the shift.
    """
    own = {key.rpartition(".")[0] for key, _ in network.named_parameters()}
    targets: dict[str, Target] = {}
    for names in SPELLINGS.get(type(network).__name__, ()):
        order = {module: place for place, module in enumerate(names)}
        layers: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for module in own:
            number = re.search(r"(?<=blocks\.)\d+", module)
            pattern = module if number is None else module.replace(f".{number[0]}.", ".*.", 1)
            if pattern in names:
                layers[names[pattern].replace("*", number[0] if number else "*")].append((order[pattern], module))
        for layer, modules in layers.items():
            parts = tuple(module for _, module in sorted(modules))
            parent = network.get_submodule(parts[0].rpartition(".")[0])
            targets[layer] = Target(parts, swapped=type(parent).__name__ == "AdaLayerNormContinuous")
    return targets
