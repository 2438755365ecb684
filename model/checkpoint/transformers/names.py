"""Map each weight of a transformer to its place in the files of Stability AI and of Black Forest Labs.

A row of a table holds for a module, `*` stands for the number of its block, and the change makes the network's tensor
of the stored one. The originals keep q, k and v in one matrix, and shift before scale where diffusers has scale first.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial

from ldmrt.model.weights.lazy import Lazy, Place, as_it_is

Row = tuple[str, Callable[[Lazy], Lazy]]  # a module in the file, or a weight where it is named otherwise
Table = Mapping[str, Row]
BLOCK = re.compile(r"(transformer_blocks\.)(\d+)\.")


def _as_they_are(names: Mapping[str, str]) -> dict[str, Row]:
    """Return the rows of modules whose tensors are stored unchanged."""
    return {ours: (theirs, as_it_is) for ours, theirs in names.items()}


def _qkv(ours: str, theirs: str, parts: int = 3) -> dict[str, Row]:
    """Return the rows of q, k and v, the first three of so many equal parts of a stored matrix."""
    return {ours.format(x): (theirs, partial(Lazy.part, index=i, count=parts)) for i, x in enumerate("qkv")}


# Stability-AI/sd3.5, mmditx.py
STABLE_DIFFUSION_3: Table = {
    **_as_they_are({
        "pos_embed.pos_embed": "pos_embed",
        "pos_embed.proj": "x_embedder.proj",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        "context_embedder": "context_embedder",
        "transformer_blocks.*.norm1.linear": "joint_blocks.*.x_block.adaLN_modulation.1",
        "transformer_blocks.*.norm1_context.linear": "joint_blocks.*.context_block.adaLN_modulation.1",
        "transformer_blocks.*.attn.norm_q": "joint_blocks.*.x_block.attn.ln_q",
        "transformer_blocks.*.attn.norm_k": "joint_blocks.*.x_block.attn.ln_k",
        "transformer_blocks.*.attn.norm_added_q": "joint_blocks.*.context_block.attn.ln_q",
        "transformer_blocks.*.attn.norm_added_k": "joint_blocks.*.context_block.attn.ln_k",
        "transformer_blocks.*.attn.to_out.0": "joint_blocks.*.x_block.attn.proj",
        "transformer_blocks.*.attn.to_add_out": "joint_blocks.*.context_block.attn.proj",
        "transformer_blocks.*.attn2.norm_q": "joint_blocks.*.x_block.attn2.ln_q",
        "transformer_blocks.*.attn2.norm_k": "joint_blocks.*.x_block.attn2.ln_k",
        "transformer_blocks.*.attn2.to_out.0": "joint_blocks.*.x_block.attn2.proj",
        "transformer_blocks.*.ff.net.0.proj": "joint_blocks.*.x_block.mlp.fc1",
        "transformer_blocks.*.ff.net.2": "joint_blocks.*.x_block.mlp.fc2",
        "transformer_blocks.*.ff_context.net.0.proj": "joint_blocks.*.context_block.mlp.fc1",
        "transformer_blocks.*.ff_context.net.2": "joint_blocks.*.context_block.mlp.fc2",
        "proj_out": "final_layer.linear",
    }),
    **_qkv("transformer_blocks.*.attn.to_{}", "joint_blocks.*.x_block.attn.qkv"),
    **_qkv("transformer_blocks.*.attn.add_{}_proj", "joint_blocks.*.context_block.attn.qkv"),
    **_qkv("transformer_blocks.*.attn2.to_{}", "joint_blocks.*.x_block.attn2.qkv"),
    "norm_out.linear": ("final_layer.adaLN_modulation.1", Lazy.swapped),
}  # fmt: skip

# black-forest-labs/flux, model.py and modules/layers.py. A single block's linear1 is q, k, v and an MLP of four times
# their width.
FLUX_1: Table = {
    **_as_they_are({
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "transformer_blocks.*.norm1.linear": "double_blocks.*.img_mod.lin",
        "transformer_blocks.*.norm1_context.linear": "double_blocks.*.txt_mod.lin",
        "transformer_blocks.*.attn.norm_q.weight": "double_blocks.*.img_attn.norm.query_norm.scale",
        "transformer_blocks.*.attn.norm_k.weight": "double_blocks.*.img_attn.norm.key_norm.scale",
        "transformer_blocks.*.attn.norm_added_q.weight": "double_blocks.*.txt_attn.norm.query_norm.scale",
        "transformer_blocks.*.attn.norm_added_k.weight": "double_blocks.*.txt_attn.norm.key_norm.scale",
        "transformer_blocks.*.attn.to_out.0": "double_blocks.*.img_attn.proj",
        "transformer_blocks.*.attn.to_add_out": "double_blocks.*.txt_attn.proj",
        "transformer_blocks.*.ff.net.0.proj": "double_blocks.*.img_mlp.0",
        "transformer_blocks.*.ff.net.2": "double_blocks.*.img_mlp.2",
        "transformer_blocks.*.ff_context.net.0.proj": "double_blocks.*.txt_mlp.0",
        "transformer_blocks.*.ff_context.net.2": "double_blocks.*.txt_mlp.2",
        "single_transformer_blocks.*.norm.linear": "single_blocks.*.modulation.lin",
        "single_transformer_blocks.*.attn.norm_q.weight": "single_blocks.*.norm.query_norm.scale",
        "single_transformer_blocks.*.attn.norm_k.weight": "single_blocks.*.norm.key_norm.scale",
        "single_transformer_blocks.*.proj_out": "single_blocks.*.linear2",
        "proj_out": "final_layer.linear",
    }),
    **_qkv("transformer_blocks.*.attn.to_{}", "double_blocks.*.img_attn.qkv"),
    **_qkv("transformer_blocks.*.attn.add_{}_proj", "double_blocks.*.txt_attn.qkv"),
    **_qkv("single_transformer_blocks.*.attn.to_{}", "single_blocks.*.linear1", parts=7),
    "single_transformer_blocks.*.proj_mlp": ("single_blocks.*.linear1", partial(Lazy.part, index=3, count=7, length=4)),
    "norm_out.linear": ("final_layer.adaLN_modulation.1", Lazy.swapped),
}  # fmt: skip


def stable_diffusion_3(depth: int) -> Table:
    """Return the table of a Stable Diffusion 3 of `depth` blocks, whose last one leaves the text as it is.

    There the text is normalised as the output is, with a shift and a scale alone.
    """
    ours, theirs = "transformer_blocks.{}.norm1_context.linear", "joint_blocks.{}.context_block.adaLN_modulation.1"
    return {**STABLE_DIFFUSION_3, ours.format(depth - 1): (theirs.format(depth - 1), Lazy.swapped)}


def original_place(key: str, table: Table, prefix: str = "") -> Place:
    """Return the place of a transformer's weight in a file in the original names.

    Args:
        key: The name of the weight in diffusers' class.
        table: The rows of its family.
        prefix: How the names of the transformer's weights begin in the file.
    """
    block = BLOCK.search(key)
    general = BLOCK.sub(r"\1*.", key, count=1)
    for name in (key, general):
        module, _, kind = name.rpartition(".")
        for entry, ending in ((name, ""), (module, f".{kind}")):
            if entry in table:
                theirs, change = table[entry]
                return prefix + theirs.replace("*", block[2] if block else "*") + ending, change
    raise AssertionError(f"{key} has no original name")


def diffusers_place(key: str, prefix: str = "") -> Place:
    """Return the place of a transformer's weight in a file in diffusers' names."""
    return prefix + key, as_it_is
