"""Inputs and outputs of the parts of an autoencoder that take an image in tiles."""

from torch import nn

from ldmrt.runtime.bundle.graphs import BACK, FRONT, TILE
from ldmrt.runtime.tensors import Specs, TensorSpec

MIDDLE, FEATURES = "mid_block", "features"


def tile_specs(inputs: Specs, outputs: Specs, network: nn.Module) -> dict[str, tuple[Specs, Specs]]:
    """Return inputs and outputs of the parts of a decoder or an encoder, by the ends of their names.

    One without norms has none: each of its tiles depends on few latents beyond, and the network itself runs in tiles.
    """
    norms = [(name, norm) for name, norm in network.named_modules() if isinstance(norm, nn.GroupNorm)]
    if not norms:
        return {}
    first, *_, last = (i for i, (name, _) in enumerate(norms) if f".{MIDDLE}." in name)
    decodes, norm = not first, norms[first][1]
    latents = (inputs if decodes else outputs)[0]
    batch, _, *area = latents.shape
    features = TensorSpec(FEATURES, "float32", (batch, norm.num_channels, *area))
    kinds = (batch, norm.num_groups, len(norms) - 1 - last if decodes else first)
    statistics = (
        TensorSpec("share", "float32", tuple(area)),
        TensorSpec("mean", "float32", kinds),
        TensorSpec("variance", "float32", kinds),
        TensorSpec("own", "float32", (1,)),
    )
    moments = (TensorSpec("moment_1", "float32", kinds), TensorSpec("moment_2", "float32", kinds))
    if decodes:
        return {FRONT: (inputs, (features,)), TILE: ((features, *statistics), (*outputs, *moments))}
    return {TILE: ((*inputs, *statistics), (features, *moments)), BACK: ((features,), outputs)}
