"""Prepare CLIP's image encoder (Radford et al. 2021, arXiv:2103.00020) for what reads its embedding, or its states."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CLIP_VISION = "CLIPVisionModelWithProjection"
EPSILON = 1e-12  # the least length of a vector, as in torch's normalize
LAST = ("vision_model.post_layernorm.", "visual_projection.")  # what follows the layers


class Embedding(nn.Module):
    """Returns the projected embedding of an image."""

    def __init__(self, model: "PreTrainedModel") -> None:
        """Take over the parts of a CLIPVisionModelWithProjection."""
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode images (B, 3, S, S), normalised as CLIP's are; returns (B, width)."""
        embeds: Tensor = self.model(pixel_values).image_embeds
        return embeds


class States(nn.Module):
    """Returns the states of an image before the last layer, which is not there."""

    def __init__(self, model: "PreTrainedModel") -> None:
        """Take over the parts of a CLIPVisionModelWithProjection that was built without its last layer."""
        super().__init__()
        self.model = model
        inner: Any = model
        del inner.vision_model.post_layernorm, inner.visual_projection

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode images (B, 3, S, S), normalised as CLIP's are; returns (B, N, width)."""
        vision: Any = self.model.vision_model
        states: Tensor = vision.encoder(inputs_embeds=vision.pre_layrnorm(vision.embeddings(pixel_values)))[0]
        return states


class SafetyChecker(nn.Module):
    """Compares the embedding of an image with those of concepts, as diffusers' StableDiffusionSafetyChecker.

    Its scores are cosines less the threshold of each concept; what they mean is decided where they are read.
    """

    COUNTED = ("special_care_embeds", "concept_embeds")  # whose rows are concepts

    def __init__(self, model: "PreTrainedModel", special: int, concepts: int) -> None:
        """Take an image encoder with a projection, and build so many special and other concepts."""
        super().__init__()
        self.model = model
        width = int(model.config.projection_dim)
        for name, count in zip(self.COUNTED, (special, concepts), strict=True):
            self.register_parameter(name, nn.Parameter(torch.empty(count, width), requires_grad=False))
            self.register_parameter(f"{name}_weights", nn.Parameter(torch.empty(count), requires_grad=False))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Score images (B, 3, S, S), normalised as CLIP's are; returns (B, special) and (B, concepts)."""
        embeds = functional.normalize(self.model(pixel_values).image_embeds)
        special, concepts = (
            embeds @ concept.T / concept.norm(dim=1).clamp_min(EPSILON) - self.get_parameter(f"{name}_weights")
            for name in self.COUNTED
            for concept in (self.get_parameter(name),)  # whose graph holds it as it is, beside its length
        )
        return special, concepts
