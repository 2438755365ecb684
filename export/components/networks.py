"""Adapters from the networks to modules that take their inputs by name and return a tuple."""

from typing import Any

from torch import Tensor, nn

from .controls import FEATURE, RESIDUAL


class _TextEncoder(nn.Module):
    """The last hidden state and the pooled text (first where it is projected, as in transformers: SDXL's pipelines take
    the first output for it), every layer's state, then the last state with layers left out.
    """

    def __init__(self, model: Any, skips: int) -> None:
        super().__init__()
        self.model, self.skips = model, skips

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        out = self.model(input_ids, output_hidden_states=True)
        projected = "text_embeds" in out
        first = (out.text_embeds, out.last_hidden_state) if projected else (out.last_hidden_state, out.pooler_output)
        norm = getattr(self.model, "text_model", self.model).final_layer_norm
        skipped = [norm(out.hidden_states[-1 - skip]) for skip in range(1, self.skips + 1)]
        return *first, *out.hidden_states, *skipped


class _UNet(nn.Module):
    """The U-Net, told by name what its config asks for, and what controls give in lists."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **told: Tensor) -> tuple[Tensor]:
        mid = told.pop("mid_block_residual", None)
        skips = [told.pop(name) for name in list(told) if name.startswith(RESIDUAL)]
        features = [told.pop(name) for name in list(told) if name.startswith(FEATURE)]
        steered = {"down_residuals": skips, "mid_residual": mid, "adapter_residuals": features}
        times = timestep.expand(sample.shape[0])  # optimum's pipelines have one for the whole batch
        return (self.model(sample, times, encoder_hidden_states, **told, **steered),)


class _Decoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = model.post_quant_conv, model.decoder

    def forward(self, latent_sample: Tensor) -> tuple[Tensor]:
        return (self.decoder(self.post_quant_conv(latent_sample)),)


class _Encoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = model.encoder, model.quant_conv

    def forward(self, sample: Tensor) -> tuple[Tensor]:
        return (self.quant_conv(self.encoder(sample)),)
