"""Adapters from the networks to modules that take their inputs by name and return a tuple."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from ldmrt.model.library.deep_autoencoder import DeepAutoencoder
from ldmrt.model.library.flux import PATCH
from ldmrt.model.library.gemma2 import GEMMA
from ldmrt.model.library.qwen3 import QWEN, ReadLayers
from ldmrt.model.networks.autoencoder import Autoencoder
from ldmrt.model.networks.ldm_bert import LDMBert
from ldmrt.model.networks.tiny_autoencoder import TinyAutoencoder
from ldmrt.model.networks.vq_autoencoder import VQAutoencoder
from ldmrt.runtime.bundle.stage_of_configs import FLUX, PIXART, SANA, Z_IMAGE

from .controls import FEATURE, RESIDUAL


class _Wrapped(nn.Module):
    """Holds a network, which is called in another way than its own."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap a network."""
        super().__init__()
        self.model = model


class _TextEncoder(nn.Module):
    """Returns the last hidden state and the pooled text, every layer's state, then the last state with layers skipped.

    A projected pooled text comes first, as in transformers: SDXL's pipelines take the first output for it.
    """

    def __init__(self, model: nn.Module, skips: int, layers: bool) -> None:
        """Wrap a text encoder of transformers, with this many skipped states, and every layer's or none."""
        super().__init__()
        self.model, self.skips, self.layers = model, skips, layers

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        out = self.model(input_ids, attention_mask, output_hidden_states=True)
        projected = "text_embeds" in out
        first = (out.text_embeds, out.last_hidden_state) if projected else (out.last_hidden_state, out.pooler_output)
        norm = getattr(self.model, "text_model", self.model).get_submodule("final_layer_norm")
        skipped = [norm(out.hidden_states[-1 - skip]) for skip in range(1, self.skips + 1)]
        return *first, *(out.hidden_states if self.layers else ()), *skipped


class _LDMBert(nn.Module):
    """Returns the last hidden state alone: no pipeline reads another, and there is no pooled text."""

    def __init__(self, model: LDMBert) -> None:
        """Wrap a text encoder without the head that it was trained with."""
        super().__init__()
        self.model = model.model

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        return (self.model(input_ids),)


class _T5(_Wrapped):
    """Returns the last hidden state of T5's encoder; padding is read as any token, as in Stable Diffusion 3."""

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        return (self.model(input_ids).last_hidden_state,)


class _MaskedT5(_T5):
    """Returns the last hidden state of T5's encoder, which does not see the padding, as in PixArt."""

    def __init__(self, model: nn.Module, pad: int) -> None:
        """Wrap a T5EncoderModel of transformers, with the id that fills up a prompt."""
        super().__init__(model)
        self.pad = pad

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        return (self.model(input_ids, attention_mask=input_ids != self.pad).last_hidden_state,)


class _Transformer(_Wrapped):
    """Calls a transformer of diffusers with its inputs by name."""

    def forward(self, hidden_states: Tensor, timestep: Tensor, **conditioning: Tensor) -> tuple[Tensor]:
        times = timestep.expand(hidden_states.shape[0])
        out = self.model(hidden_states=hidden_states, timestep=times, **conditioning, return_dict=False)
        return (out[0],)


class _Flux(_Wrapped):
    """Calls the transformer of FLUX.1 with latents, which it packs into tokens, and with their positions.

    diffusers' `forward` rounds time and guidance to the weights' precision before it multiplies them by 1000, an error
    of up to 2 of 1000 in bfloat16; here they stay float32, and its submodules are called in its order.

    Latents of more channels than it reads are those of several images, whose tokens follow one another as Kontext's
    (Black Forest Labs 2025, arXiv:2506.15742): it predicts those of the first.
    """

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, pooled_projections: Tensor,
        guidance: Tensor | None = None,
    ) -> tuple[Tensor]:  # fmt: skip
        model: Any = self.model
        times = timestep.expand(hidden_states.shape[0])
        numbers = (times,) if guidance is None else (times, model.thousandfold(guidance))
        temb = model.time_text_embed(*numbers, pooled_projections)
        channels = model.config.in_channels // PATCH**2
        images = hidden_states.shape[1] // channels
        packed = model.pack(hidden_states[:, :channels] if images > 1 else hidden_states)
        tokens = packed.shape[1]
        if images > 1:
            others = [model.pack(hidden_states[:, n * channels : (n + 1) * channels]) for n in range(1, images)]
            packed = torch.cat([packed, *others], dim=1)
        x, context = model.x_embedder(packed), model.context_embedder(encoder_hidden_states)
        rotary = model.pos_embed(model.positions(context, hidden_states, images))
        for block in (*model.transformer_blocks, *model.single_transformer_blocks):
            context, x = block(hidden_states=x, encoder_hidden_states=context, temb=temb, image_rotary_emb=rotary)
        out = model.proj_out(model.norm_out(x, temb))
        return (model.unpack(out[:, :tokens] if images > 1 else out, hidden_states),)


class _PixArt(nn.Module):
    """Calls the transformer of PixArt, which is given the size of its image, and keeps the noise of what it predicts.

    Exporters cannot follow diffusers' `forward`, which drops an axis of tokens where there is one token; here its
    submodules are called in its order.
    """

    def __init__(self, model: nn.Module, factor: int) -> None:
        """Wrap a network of latents that stand for so many pixels along one side."""
        super().__init__()
        self.model, self.factor = model, factor

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor
    ) -> tuple[Tensor]:
        model, batch = cast(Any, self.model), hidden_states.shape[0]
        x, context = model.pos_embed(hidden_states), encoder_hidden_states.expand(batch, -1, -1)
        sizes = model.sizes(hidden_states, self.factor) if model.use_additional_conditions else None
        modulation, time = model.adaln_single(timestep.expand(batch), sizes, batch_size=batch, hidden_dtype=x.dtype)
        if model.caption_projection is not None:
            context = model.caption_projection(context)
        bias = model.mask(encoder_attention_mask.expand(batch, -1), x)
        for block in model.transformer_blocks:
            x = block(x, encoder_hidden_states=context, encoder_attention_mask=bias, timestep=modulation)
        x = model.proj_out(model.modulate(model.norm_out(x), time, model.scale_shift_table))
        return (model.prediction(model.unpack(x, hidden_states)),)


class _Sana(_Wrapped):
    """Calls the transformer of Sana, whose submodules are called in the order of diffusers' `forward`.

    That one repeats the mask for each head.
    """

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor
    ) -> tuple[Tensor]:
        model, batch = cast(Any, self.model), hidden_states.shape[0]
        height, width = (side // model.config.patch_size for side in hidden_states.shape[2:])
        x, times = model.patch_embed(hidden_states), model.scaled_time(timestep.expand(batch))
        modulation, time = model.time_embed(times, batch_size=batch, hidden_dtype=x.dtype)
        context = model.caption_norm(model.caption_projection(encoder_hidden_states.expand(batch, -1, -1)))
        bias = model.mask(encoder_attention_mask.expand(batch, -1), x)
        for block in model.transformer_blocks:
            x = block(x, None, context, bias, modulation, height, width)
        x = model.proj_out(model.norm_out(x, time, model.scale_shift_table))
        return (model.prediction(model.unpack(x, hidden_states)),)


class _Gemma(_MaskedT5):
    """Returns the last hidden state of Gemma, whose tokens see those before them, but for the padding."""

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        model: Any = self.model
        x, seen = model.embed_tokens(input_ids), input_ids != self.pad
        positions, config = model.rotary_emb(x), model.config
        masks = {"full_attention": model.causal_mask(seen, x)}
        if "sliding_attention" in config.layer_types:
            masks["sliding_attention"] = model.sliding_mask(seen, x, config.sliding_window)
        for kind, layer in zip(config.layer_types, model.layers, strict=True):
            x = layer(x, attention_mask=masks[kind], position_embeddings=positions)
        return (model.norm(x),)


class _ZImage(_Wrapped):
    """Calls the transformer of Z-Image, whose submodules are called in the order of diffusers' `forward`.

    That one takes lists of images and of prompts of any length, each of which it fills up for itself.
    """

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor
    ) -> tuple[Tensor]:
        model, batch = cast(Any, self.model), hidden_states.shape[0]
        own = model.all_x_embedder["2-1"](model.patches(hidden_states))
        x = model.image_padding(own, model.x_pad_token)
        time = model.t_embedder(model.progress(timestep.expand(batch)), x.dtype)
        prompt, mask = encoder_hidden_states.expand(batch, -1, -1), encoder_attention_mask.expand(batch, -1)
        context, length = model.cap_embedder(prompt), model.prompt_length(mask)
        context = model.prompt_padding(context, mask, model.cap_pad_token)
        tokens, image_bias = x.shape[1], model.image_mask(x).expand(batch, -1)
        prompt_bias = model.prompt_mask(context, length)
        positions = [model.image_positions(hidden_states, length), model.prompt_positions(context)]
        rotary = model.rope_embedder(torch.cat(positions, dim=1))
        bias = image_bias[:, None].expand(-1, tokens, -1)
        for block in model.noise_refiner:
            x = block(x, bias, rotary[:, :, :tokens], time)
        bias = prompt_bias[:, None].expand(-1, context.shape[1], -1)
        for block in model.context_refiner:
            context = block(context, bias, rotary[:, :, tokens:])
        x = torch.cat([x, context], dim=1)
        bias = torch.cat([image_bias, prompt_bias], dim=1)[:, None].expand(-1, x.shape[1], -1)
        for block in model.layers:
            x = block(x, bias, rotary, time)
        out = model.all_final_layer["2-1"](x[:, : own.shape[1]], c=time)
        return (model.velocity(model.unpack(out, hidden_states)),)


class _Qwen(_Wrapped):
    """Returns the states of Qwen3 before its last layer, of whose weights the graph holds none."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap a Qwen3Model of transformers."""
        super().__init__(ReadLayers(model))

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        return (self.model(input_ids),)


def one_state(model: nn.Module, pad: int | None) -> nn.Module:
    """Wrap T5's encoder, Gemma or Qwen3, with the id that fills up a prompt where the encoder masks it."""
    if type(model).__name__ == QWEN:
        return _Qwen(model)
    if pad is None:
        return _T5(model)
    return (_Gemma if type(model).__name__ == GEMMA else _MaskedT5)(model, pad)


def transformer(model: nn.Module, kind: str, factor: int) -> nn.Module:
    """Wrap a transformer of a class in diffusers, whose latents stand for so many pixels along one side."""
    if kind == PIXART:
        return _PixArt(model, factor)
    return {FLUX: _Flux, SANA: _Sana, Z_IMAGE: _ZImage}.get(kind, _Transformer)(model)


class _UNet(_Wrapped):
    """Calls the U-Net with its conditioning by name, and with the controls' residuals as lists."""

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor | None = None, **conditioning: Tensor
    ) -> tuple[Tensor]:
        mid = conditioning.pop("mid_block_residual", None)
        skips = [conditioning.pop(name) for name in list(conditioning) if name.startswith(RESIDUAL)]
        features = [conditioning.pop(name) for name in list(conditioning) if name.startswith(FEATURE)]
        steered = {"down_residuals": skips, "mid_residual": mid, "adapter_residuals": features}
        times = timestep.expand(sample.shape[0])  # optimum's pipelines have one for the whole batch
        if encoder_hidden_states is None:  # which controls do not steer
            return (self.model(sample, times, **conditioning),)
        return (self.model(sample, times, encoder_hidden_states, **conditioning, **steered),)


class _Decoder(nn.Module):
    def __init__(self, model: Autoencoder | VQAutoencoder | TinyAutoencoder | DeepAutoencoder) -> None:
        """Wrap the half of a network that makes images."""
        super().__init__()
        self.post_quant_conv, self.decoder = model.post_quant_conv, model.decoder

    def forward(self, latent_sample: Tensor) -> tuple[Tensor]:
        return (self.decoder(self.post_quant_conv(latent_sample)),)


class _VQDecoder(_Decoder):
    """Looks the codes up first."""

    def __init__(self, model: VQAutoencoder) -> None:
        """Wrap the half of a network that makes images, with its codebook."""
        super().__init__(model)
        self.quantize = model.quantize

    def forward(self, latent_sample: Tensor) -> tuple[Tensor]:
        return super().forward(self.quantize(latent_sample))


class _Encoder(nn.Module):
    def __init__(self, model: Autoencoder | VQAutoencoder | TinyAutoencoder | DeepAutoencoder) -> None:
        """Wrap the half of a network that makes latents, or the parameters of their distribution."""
        super().__init__()
        self.encoder, self.quant_conv = model.encoder, model.quant_conv

    def forward(self, sample: Tensor) -> tuple[Tensor]:
        return (self.quant_conv(self.encoder(sample)),)
