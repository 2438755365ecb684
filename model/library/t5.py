"""Build T5's encoder, which Stable Diffusion 3, FLUX.1 and PixArt have (Raffel et al. 2020, arXiv:1910.10683)."""

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import nn

from ldmrt.model.weights.lazy import as_it_is
from ldmrt.model.weights.weights import Place, Tensors, plain

if TYPE_CHECKING:
    from torch import Tensor

T5 = "T5EncoderModel"
SHARED, EMBEDDED = "shared.weight", "encoder.embed_tokens.weight"  # one matrix under two names


def leave_precision(encoder: nn.Module) -> None:
    """Let T5's feed-forward blocks compute in the precision of what they are given.

    transformers' own round what the last layer takes to the precision of its weight. Where weights are cast when a
    layer runs, that is the precision in which they are stored, and not the one that is computed in.
    """
    classes = _feed_forward()
    for block in encoder.modules():
        if type(block) in classes:
            block.__class__ = classes[type(block)]


@cache
def _feed_forward() -> dict[type[nn.Module], type[nn.Module]]:
    """Return the classes of T5's feed-forward blocks without the cast, by those of transformers."""
    from transformers.models.t5.modeling_t5 import T5DenseActDense, T5DenseGatedActDense

    class Plain(T5DenseActDense):
        def forward(self, hidden_states: Any) -> Any:
            return self.wo(self.act(self.wi(hidden_states)))

    class Gated(T5DenseGatedActDense):
        def forward(self, hidden_states: Any) -> Any:
            return self.wo(self.act(self.wi_0(hidden_states)) * self.wi_1(hidden_states))

    return {T5DenseActDense: Plain, T5DenseGatedActDense: Gated}


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
