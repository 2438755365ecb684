"""The table of what is exported. A new component is one function here.

Shapes are in symbols; `DIMS` says what a symbol may be, and ONNX axes, example inputs and parity cases follow from it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ldmrt.model import Checkpoint
from ldmrt.model.checkpoint import class_of
from ldmrt.model.config import to_config
from ldmrt.model.engine import TorchEngine
from ldmrt.runtime.control import PREFIX
from ldmrt.runtime.specs import TensorSpec

Specs = tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Dim:
    """The least, the usual and the largest size of a symbolic dimension."""

    min: int
    opt: int
    max: int


DIMS = {"batch": Dim(1, 2, 64), "height": Dim(64, 512, 2048), "width": Dim(64, 512, 2048)}  # pixels

# Of the largest difference, relative to the largest value. Float32 against float32: only the order of sums differs.
# Measured: 3e-6 at most over the tests' and the demo's models.
TOLERANCE = 2e-5


@dataclass(frozen=True)
class Component:
    """One network of the model, as it is exported."""

    name: str
    module: nn.Module = field(repr=False)  # forward takes the inputs by name, returns a tuple
    inputs: Specs
    outputs: Specs
    config: dict[str, Any] = field(repr=False)  # its config.json in the bundle
    vocabulary: tuple[int, int] = (0, 0)  # of input_ids: entries, and the id that ends a text
    tolerance: float = TOLERANCE

    def engine(self) -> TorchEngine:
        """The reference."""
        return TorchEngine(self.name, self.module, self.inputs, self.outputs)

    @property
    def unit(self) -> int:
        """Pixels that a picture's sides are multiples of."""
        dims = [dim for spec in self.inputs + self.outputs for dim in spec.shape if isinstance(dim, str)]
        return max(split_symbol(dim)[1] for dim in dims)

    @property
    def precision(self) -> str:
        """fp32, fp16 or bf16."""
        return {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[dtype_of(self.module)]


def components(checkpoint: Checkpoint) -> dict[str, Component]:
    """Every component of a checkpoint, in the order that they run."""
    rows = [row for build in BUILDERS for row in build(checkpoint)]
    return {row.name: row for row in rows}


class _TextEncoder(nn.Module):
    """The last hidden state and the pooled text, every layer's state, then the last state with layers left out."""

    def __init__(self, model: Any, skips: int) -> None:
        super().__init__()
        self.model, self.skips = model, skips

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        out = self.model(input_ids, output_hidden_states=True)
        pooled = out.text_embeds if "text_embeds" in out else out.pooler_output
        norm = getattr(self.model, "text_model", self.model).final_layer_norm
        skipped = [norm(out.hidden_states[-1 - skip]) for skip in range(1, self.skips + 1)]
        return out.last_hidden_state, pooled, *out.hidden_states, *skipped


def _text_encoders(c: Checkpoint) -> Iterator[Component]:
    for name, model in c.text_encoders.items():
        config = model.config
        dtype, width, tokens = dtype_of(model), int(config.hidden_size), int(config.max_position_embeddings)
        layers = int(config.num_hidden_layers)
        skips = 0 if c.unet.config.addition_embed_type else layers - 1  # SDXL takes a layer's state as it is
        projects = class_of(model) == "CLIPTextModelWithProjection"
        pooled = ("text_embeds", int(config.projection_dim)) if projects else ("pooler_output", width)
        states = ["last_hidden_state", *(f"hidden_states.{i}" for i in range(layers + 1))]
        states += [f"last_hidden_state.{skip}" for skip in range(1, skips + 1)]
        outputs = [TensorSpec(state, dtype, ("batch", tokens, width)) for state in states]
        outputs.insert(1, TensorSpec(pooled[0], dtype, ("batch", pooled[1])))
        yield Component(
            name,
            _TextEncoder(model, skips),
            (TensorSpec("input_ids", "int64", ("batch", tokens)),),
            tuple(outputs),
            {**config.to_dict(), "architectures": [class_of(model)]},
            (int(config.vocab_size), _end(c, name)),
        )


def _end(c: Checkpoint, name: str) -> int:
    """The id that ends a text: old configs say 2, of a vocabulary in which it is another."""
    eos = int(c.text_encoders[name].config.eos_token_id)
    return int(c.text_encoders[name].config.vocab_size) - 1 if eos == 2 else eos


class _UNet(nn.Module):
    """The U-Net, told by name what its config asks for, and the residuals of ControlNets in one list."""

    def __init__(self, model: Any, residuals: int) -> None:
        super().__init__()
        self.model, self.residuals = model, residuals

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **told: Tensor) -> tuple[Tensor]:
        mid = told.pop("mid_block_residual", None)
        down = [told.pop(f"down_block_residual_{i}") for i in range(self.residuals)]
        return (self.model(sample, timestep, encoder_hidden_states, **told, down_residuals=down, mid_residual=mid),)


def _words(c: Checkpoint, dtype: str) -> list[TensorSpec]:
    """What U-Nets and ControlNets are told of the prompts."""
    unet = c.unet.config
    tokens = max(int(model.config.max_position_embeddings) for model in c.text_encoders.values())
    specs = [TensorSpec("encoder_hidden_states", dtype, ("batch", tokens, context_width(c)))]
    if unet.projection_class_embeddings_input_dim and unet.addition_time_embed_dim:
        width = int(list(c.text_encoders.values())[-1].config.projection_dim)
        numbers = (unet.projection_class_embeddings_input_dim - width) // unet.addition_time_embed_dim
        specs.append(TensorSpec("text_embeds", dtype, ("batch", width)))
        specs.append(TensorSpec("time_ids", "float32", ("batch", numbers)))
    return specs


def context_width(c: Checkpoint) -> int:
    """The width of a token's context: that of all text encoders side by side."""
    return sum(int(model.config.hidden_size) for model in c.text_encoders.values())


def _residuals(c: Checkpoint, dtype: str) -> list[TensorSpec]:
    """One for each skip of the U-Net and one for its middle."""
    factor, widths = c.vae.config.factor, c.unet.config.block_out_channels
    levels = [0]  # of each skip
    for level, layers in enumerate(c.unet.config.layers):
        levels += [level] * layers + [level + 1] * (level < len(widths) - 1)
    shapes = [
        ("batch", channels, *_sides(factor * 2**level))
        for channels, level in zip(c.unet.skip_channels, levels, strict=True)
    ]
    specs = [TensorSpec(f"down_block_residual_{i}", dtype, shape) for i, shape in enumerate(shapes)]
    middle = ("batch", widths[-1], *_sides(factor * 2 ** (len(widths) - 1)))
    return [*specs, TensorSpec("mid_block_residual", dtype, middle)]


def _unet(c: Checkpoint) -> Iterator[Component]:
    config, dtype = c.unet.config, dtype_of(c.unet)
    residuals = _residuals(c, dtype) if c.controlnets else []
    inputs = [_latent(c, "sample", config.in_channels, dtype), TensorSpec("timestep", "float32", ("batch",))]
    inputs += _words(c, dtype)
    if config.time_cond_proj_dim:
        inputs.append(TensorSpec("timestep_cond", dtype, ("batch", config.time_cond_proj_dim)))
    yield Component(
        "unet",
        _UNet(c.unet, max(0, len(residuals) - 1)),
        (*inputs, *residuals),
        (_latent(c, "out_sample", config.out_channels, dtype),),
        to_config("UNet2DConditionModel", config),
    )


class _ControlNet(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, controlnet_cond: Tensor,
        conditioning_scale: Tensor, **told: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        down, mid = self.model(sample, timestep, encoder_hidden_states, controlnet_cond, conditioning_scale, **told)
        return *down, mid


def _controlnets(c: Checkpoint) -> Iterator[Component]:
    for name, model in c.controlnets.items():
        dtype = dtype_of(model)
        yield Component(
            PREFIX + name.removeprefix(PREFIX),
            _ControlNet(model),
            (
                _latent(c, "sample", model.config.in_channels, dtype),
                TensorSpec("timestep", "float32", ("batch",)),
                *_words(c, dtype),
                _picture("controlnet_cond", model.config.conditioning_channels, dtype),
                TensorSpec("conditioning_scale", "float32", ("batch",)),
            ),
            tuple(_residuals(c, dtype)),
            to_config("ControlNetModel", model.config),
        )


class _Decoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = model.post_quant_conv, model.decoder

    def forward(self, latent_sample: Tensor) -> tuple[Tensor]:
        return (self.decoder(self.post_quant_conv(latent_sample)),)


def _vae_decoder(c: Checkpoint) -> Iterator[Component]:
    config, dtype = c.vae.config, dtype_of(c.vae)
    yield Component(
        "vae_decoder",
        _Decoder(c.vae),
        (_latent(c, "latent_sample", config.latent_channels, dtype),),
        (_picture("sample", config.out_channels, dtype),),
        to_config("AutoencoderKL", config),
    )


class _Encoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = model.encoder, model.quant_conv

    def forward(self, sample: Tensor) -> tuple[Tensor]:
        return (self.quant_conv(self.encoder(sample)),)


def _vae_encoder(c: Checkpoint) -> Iterator[Component]:
    config, dtype = c.vae.config, dtype_of(c.vae)
    yield Component(
        "vae_encoder",
        _Encoder(c.vae),
        (_picture("sample", config.in_channels, dtype),),
        (_latent(c, "latent_parameters", 2 * config.latent_channels, dtype),),
        to_config("AutoencoderKL", config),
    )


BUILDERS: tuple[Callable[[Checkpoint], Iterator[Component]], ...] = (
    _text_encoders,
    _unet,
    _vae_decoder,
    _vae_encoder,
    _controlnets,
)


def dtype_of(module: nn.Module) -> str:
    """The NumPy name of a network's precision."""
    return str(next(module.parameters()).dtype).removeprefix("torch.")


def _sides(divisor: int) -> tuple[str, str]:
    return f"height/{divisor}", f"width/{divisor}"


def _latent(c: Checkpoint, name: str, channels: int, dtype: str) -> TensorSpec:
    return TensorSpec(name, dtype, ("batch", channels, *_sides(c.vae.config.factor)))


def _picture(name: str, channels: int, dtype: str) -> TensorSpec:
    return TensorSpec(name, dtype, ("batch", channels, "height", "width"))


def split_symbol(dim: str) -> tuple[str, int]:
    """ "height/8" -> ("height", 8); "batch" -> ("batch", 1)."""
    name, _, divisor = dim.partition("/")
    return name, int(divisor or 1)


def shape_of(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The numbers of a shape in symbols, such as ("batch", 4, "height/8") where height is 512: (2, 4, 64)."""

    def number(dim: int | str) -> int:
        if isinstance(dim, int):
            return dim
        name, divisor = split_symbol(dim)
        return sizes[name] // divisor

    return tuple(number(dim) for dim in spec.shape)


def example(component: Component, sizes: Mapping[str, int], seed: int = 0) -> dict[str, NDArray]:
    """Inputs of the right shape and range: unit noise, timesteps over the whole schedule, ids of the vocabulary."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, NDArray] = {}
    for spec in component.inputs:
        shape = shape_of(spec, sizes)
        if spec.dtype == "int64":
            entries, end = component.vocabulary
            arrays[spec.name] = rng.integers(0, entries, shape)
            arrays[spec.name][:, -1] = end
        elif spec.name == "timestep":
            arrays[spec.name] = np.linspace(0, 999, shape[0], dtype=np.float32)
        elif spec.name == "time_ids":
            arrays[spec.name] = rng.integers(0, 1024, shape).astype(np.float32)
        else:
            dtype = np.float32 if spec.dtype == "bfloat16" else spec.dtype
            arrays[spec.name] = rng.standard_normal(shape, dtype=np.float32).astype(dtype)
    return arrays


def tensors(component: Component, arrays: Mapping[str, NDArray]) -> dict[str, Tensor]:
    """The same for PyTorch, of the dtypes that the inputs declare."""
    return {spec.name: torch.from_numpy(arrays[spec.name]).to(getattr(torch, spec.dtype)) for spec in component.inputs}
