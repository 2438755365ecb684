"""Name the modules of a U-Net as the original code does (CompVis', later Stability's), and after it many trainers."""

from collections.abc import Sequence

# The parts of a residual block, in diffusers and in the original
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet_modules(layers: Sequence[int], up_block_types: Sequence[str]) -> dict[str, str]:
    """Map each module of the U-Net in diffusers' naming to that of the original code (CompVis', later Stability's).

    An entry holds for the module and for all below it, which is named alike; no two entries overlap, so a weight is
    renamed by its one entry, in either direction. Entries that this very network lacks (a conv_shortcut, say) do no
    harm. The original numbers its blocks through: input_blocks.0 is conv_in, then there is one a layer and one a
    downsampler; output_blocks has one a layer, and the upsampler stands last in the last block of its level.

    Args:
        layers: The layers of each level, from the outermost.
        up_block_types: The classes of the blocks that enlarge, in their order.
    """
    names = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "mid_block.attentions.0": "middle_block.1",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    resnets = {"mid_block.resnets.0": "middle_block.0", "mid_block.resnets.1": "middle_block.2"}
    last = len(layers) - 1
    block = 1
    for level, count in enumerate(layers):
        for layer in range(count):
            resnets[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{block}.0"
            names[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{block}.1"
            block += 1
        if level < last:
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{block}.0.op"
            block += 1
    block = 0
    for level, (count, kind) in enumerate(zip(reversed(layers), up_block_types, strict=True)):
        for layer in range(count + 1):
            resnets[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{block}.0"
            names[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{block}.1"
            block += 1
        if level < last:
            member = 2 if "Attn" in kind else 1
            names[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{block - 1}.{member}.conv"
    for ours, theirs in resnets.items():
        names |= {f"{ours}.{part}": f"{theirs}.{other}" for part, other in RESNET.items()}
    return names
