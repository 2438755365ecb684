"""Define the text encoder of latent diffusion's own text-to-image model (Rombach et al. 2022, section 4.3.1).

It is a transformer that is trained with the U-Net and reads BERT's tokens. State-dict keys and config fields are those
of LDMBertModel and LDMBertConfig in diffusers.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmrt.model.config import RawConfig, from_config, positive, within

from .blocks import ACTIVATIONS, known_activation

PART = "text_encoder"
KIND = "ldmbert"
# Keys of the config about its training, and about the program that ran it.
NOTES = {"activation_dropout", "classifier_dropout", "encoder_layerdrop", "init_std", "use_cache"}
NOTES |= {"output_attentions", "output_hidden_states", "return_dict", "attn_implementation"}
# Keys that ask for something else than the layers below, with the value that asks for nothing.
NEUTRAL: RawConfig = {"model_type": KIND, "scale_embedding": False, "is_decoder": False, "is_encoder_decoder": False}


@dataclass(frozen=True)
class LDMBertConfig:
    """Holds the fields of LDMBertConfig that matter here; the defaults are diffusers'."""

    vocab_size: int = 30522
    max_position_embeddings: int = 77
    encoder_layers: int = 32
    encoder_ffn_dim: int = 5120
    encoder_attention_heads: int = 8
    head_dim: int = 64  # of its own: heads * head_dim need not be d_model
    activation_function: str = "gelu"
    d_model: int = 1280
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes and activations that no network can be built of."""
        positive(PART, self, "vocab_size", "max_position_embeddings", "encoder_layers", "encoder_ffn_dim")
        positive(PART, self, "encoder_attention_heads", "head_dim", "d_model")
        within(PART, self, "pad_token_id", 0, self.vocab_size - 1)
        known_activation(PART, self, "activation_function")

    @classmethod
    def read(cls, config: RawConfig) -> "LDMBertConfig":
        """Read the content of the encoder's config.json; see `from_config`."""
        asked = {key: value for key, value in config.items() if key not in NOTES}
        layers = config.get("encoder_layers", cls.encoder_layers)
        return from_config(cls, asked, {**NEUTRAL, "num_hidden_layers": layers}, PART)

    @property
    def hidden_size(self) -> int:
        """The width of the embeddings, as transformers' text encoders name it."""
        return self.d_model

    @property
    def projection_dim(self) -> int:
        """The width of the pooled text, which this encoder has none of."""
        return 0

    def to_dict(self) -> dict[str, object]:
        """Return the content of a config.json, as transformers' configs do."""
        return {**asdict(self), "model_type": KIND, "num_hidden_layers": self.encoder_layers}


class LDMBertAttention(nn.Module):
    """Computes self-attention in which every token sees every other, padding too."""

    def __init__(self, config: LDMBertConfig) -> None:
        """Build the four projections, of which the last alone has a bias."""
        super().__init__()
        inner = config.encoder_attention_heads * config.head_dim
        self.heads = config.encoder_attention_heads
        self.k_proj = nn.Linear(config.d_model, inner, bias=False)
        self.v_proj = nn.Linear(config.d_model, inner, bias=False)
        self.q_proj = nn.Linear(config.d_model, inner, bias=False)
        self.out_proj = nn.Linear(inner, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Let tokens x (B, L, d_model) attend to themselves; returns (B, L, d_model)."""
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, L, head_dim)
            for projected in (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class LDMBertLayer(nn.Module):
    """Chains attention and feed-forward, each normalised before and added to its input."""

    def __init__(self, config: LDMBertConfig) -> None:
        """Build one layer; `final_layer_norm` comes before its feed-forward."""
        super().__init__()
        self.self_attn = LDMBertAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.act = ACTIVATIONS[config.activation_function.lower()]
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens x (B, L, d_model); returns (B, L, d_model)."""
        x = x + self.self_attn(self.self_attn_layer_norm(x))
        return x + self.fc2(self.act(self.fc1(self.final_layer_norm(x))))


class LDMBertEncoder(nn.Module):
    """Embeds tokens and their positions, and runs the layers."""

    def __init__(self, config: LDMBertConfig) -> None:
        """Build both tables, the layers and the last norm."""
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.d_model)
        self.layers = nn.ModuleList([LDMBertLayer(config) for _ in range(config.encoder_layers)])
        self.layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode tokens (B, L), int64, L at most max_position_embeddings; returns the last state (B, L, d_model)."""
        # Expanded to the batch: exporters would fold a look-up of constants, and the table would not be in the graph.
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        x = self.embed_tokens(input_ids) + self.embed_positions(positions)
        for layer in self.layers:
            x = layer(x)
        return self.layer_norm(x)


class LDMBert(nn.Module):
    """Encodes the tokens of prompts as the embeddings that the U-Net reads.

    Checkpoints hold the head that predicted tokens in training, `to_logits`. No image depends on it.
    """

    def __init__(self, config: LDMBertConfig) -> None:
        """Build the encoder and the head."""
        super().__init__()
        self.config = config
        self.model = LDMBertEncoder(config)
        self.to_logits = nn.Linear(config.d_model, config.vocab_size)

    @classmethod
    def from_config(cls, config: RawConfig) -> "LDMBert":
        """Build the network of a config.json, with random weights."""
        return cls(LDMBertConfig.read(config))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode prompts.

        Args:
            input_ids: Tokens (B, L), int64, L at most max_position_embeddings. Padding is read as any other token: the
                model was trained so.

        Returns:
            The prompt embeddings (B, L, d_model).
        """
        return self.model(input_ids)
