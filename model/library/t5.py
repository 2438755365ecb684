"""Build T5's encoder, which Stable Diffusion 3, FLUX.1 and PixArt have (Raffel et al. 2020, arXiv:1910.10683)."""

from dataclasses import replace
from typing import TYPE_CHECKING

from ldmrt.model.weights.lazy import as_it_is
from ldmrt.model.weights.weights import Place, Tensors, plain

if TYPE_CHECKING:
    from torch import Tensor

T5 = "T5EncoderModel"
SHARED, EMBEDDED = "shared.weight", "encoder.embed_tokens.weight"  # one matrix under two names


def tied(tensors: "Tensors") -> "Tensors":
    """Return the tensors of a file of T5, which holds the embeddings of its tokens under one of two names, or both."""
    held = SHARED if SHARED in tensors.named else EMBEDDED
    named = {key: tensor for key, tensor in tensors.named.items() if key not in (SHARED, EMBEDDED) or key == held}

    def place(key: str) -> Place:
        """Return the place of one of the network's weights."""
        return (held, as_it_is) if key in (SHARED, EMBEDDED) else plain(key)

    return replace(tensors, named=named, place=place)


def saved(state: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Return T5's weights as transformers saves them: the embeddings once."""
    return {key: value for key, value in state.items() if key != EMBEDDED}
