"""Tell which text encoders of a model words can be added to, and their names in files of vectors."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from ldmrt.model.networks.ldm_bert import LDMBert

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T5, T5_KIND = "t5", "T5EncoderModel"  # its name in files, whatever its number in a model, and its class
CLIP_KINDS = "CLIPTextModel"  # what the names of CLIP's classes begin with


def kind_of(encoder: "PreTrainedModel | LDMBert") -> str:
    """Return the name of a text encoder's class in transformers or diffusers."""
    return "LDMBertModel" if isinstance(encoder, LDMBert) else type(encoder).__name__


def with_words(text_encoders: "Mapping[str, PreTrainedModel | LDMBert]") -> "dict[str, PreTrainedModel]":
    """Return the encoders to which words can be added: those of CLIP, and T5 beside them, as in FLUX.1."""
    clip = any(kind_of(encoder).startswith(CLIP_KINDS) for encoder in text_encoders.values())
    return {
        part: encoder
        for part, encoder in text_encoders.items()
        if not isinstance(encoder, LDMBert) and clip and kind_of(encoder).startswith((CLIP_KINDS, T5_KIND))
    }


def of_parts(vectors: Mapping[str, Tensor], encoders: "Mapping[str, PreTrainedModel]") -> dict[str, Tensor]:
    """Return the vectors of a file with those for T5 under its name in the model, where the model has one."""
    name = next((part for part, encoder in encoders.items() if kind_of(encoder) == T5_KIND), T5)
    return {name if part == T5 else part: own for part, own in vectors.items()}
