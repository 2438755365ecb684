"""The table of what is exported. A new component is one row here.

Shapes are in symbols; `DIMS` says what a symbol may be, and ONNX axes, example inputs and parity cases follow from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ldmrt.model import Checkpoint
from ldmrt.model.config import to_config
from ldmrt.model.engine import TorchEngine
from ldmrt.runtime.specs import TensorSpec

Specs = tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Dim:
    """The least, the usual and the largest size of a symbolic dimension."""

    min: int
    opt: int
    max: int


DIMS = {"batch": Dim(1, 2, 64), "height": Dim(64, 512, 2048), "width": Dim(64, 512, 2048)}  # pixels


@dataclass(frozen=True)
class Component:
    """One network of the model, as it is exported."""

    name: str
    part: str  # the folder in the checkpoint
    module: Callable[[Checkpoint], nn.Module]  # forward takes the inputs by name, returns a tuple
    inputs: Callable[[Checkpoint], Specs]
    outputs: Callable[[Checkpoint], Specs]
    config: Callable[[Checkpoint], dict[str, Any]]  # its config.json in the bundle
    tolerance: float  # of the largest difference, relative to the largest value

    def engine(self, checkpoint: Checkpoint) -> TorchEngine:
        """The reference."""
        return TorchEngine(self.name, self.module(checkpoint), self.inputs(checkpoint), self.outputs(checkpoint))


class _TextEncoder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        out = self.model(input_ids)
        return out.last_hidden_state, out.pooler_output


class _UNet(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor]:
        return (self.model(sample, timestep, encoder_hidden_states),)


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


def _tokens(c: Checkpoint) -> int:
    return int(c.text_encoder.config.max_position_embeddings)


def _latent(c: Checkpoint, name: str, channels: int) -> TensorSpec:
    f = c.vae.config.factor
    return TensorSpec(name, "float32", ("batch", channels, f"height/{f}", f"width/{f}"))


def _picture(c: Checkpoint, channels: int) -> TensorSpec:
    return TensorSpec("sample", "float32", ("batch", channels, "height", "width"))


def _text_outputs(c: Checkpoint) -> Specs:
    width = int(c.text_encoder.config.hidden_size)
    return (
        TensorSpec("last_hidden_state", "float32", ("batch", _tokens(c), width)),
        TensorSpec("pooler_output", "float32", ("batch", width)),
    )


def _unet_inputs(c: Checkpoint) -> Specs:
    return (
        _latent(c, "sample", c.unet.config.in_channels),
        TensorSpec("timestep", "float32", ("batch",)),
        TensorSpec("encoder_hidden_states", "float32", ("batch", _tokens(c), c.unet.config.cross_attention_dim)),
    )


# Float32 against float32: only the order of sums differs. Measured: 3e-6 at most over the tests' and the demo's models.
TOLERANCE = 2e-5

COMPONENTS: dict[str, Component] = {
    row.name: row
    for row in (
        Component(
            "text_encoder",
            "text_encoder",
            lambda c: _TextEncoder(c.text_encoder),
            lambda c: (TensorSpec("input_ids", "int64", ("batch", _tokens(c))),),
            _text_outputs,
            lambda c: c.text_encoder.config.to_dict(),
            TOLERANCE,
        ),
        Component(
            "unet",
            "unet",
            lambda c: _UNet(c.unet),
            _unet_inputs,
            lambda c: (_latent(c, "out_sample", c.unet.config.out_channels),),
            lambda c: to_config("UNet2DConditionModel", c.unet.config),
            TOLERANCE,
        ),
        Component(
            "vae_decoder",
            "vae",
            lambda c: _Decoder(c.vae),
            lambda c: (_latent(c, "latent_sample", c.vae.config.latent_channels),),
            lambda c: (_picture(c, c.vae.config.out_channels),),
            lambda c: to_config("AutoencoderKL", c.vae.config),
            TOLERANCE,
        ),
        Component(
            "vae_encoder",
            "vae",
            lambda c: _Encoder(c.vae),
            lambda c: (_picture(c, c.vae.config.in_channels),),
            lambda c: (_latent(c, "latent_parameters", 2 * c.vae.config.latent_channels),),
            lambda c: to_config("AutoencoderKL", c.vae.config),
            TOLERANCE,
        ),
    )
}


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


def example(specs: Specs, sizes: Mapping[str, int], checkpoint: Checkpoint, seed: int = 0) -> dict[str, NDArray]:
    """Inputs of the right shape and range: unit noise, timesteps over the whole schedule, ids of the vocabulary."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, NDArray] = {}
    for spec in specs:
        shape = shape_of(spec, sizes)
        if spec.dtype == "int64":
            ids = rng.integers(0, int(checkpoint.text_encoder.config.vocab_size), shape)
            ids[:, -1] = checkpoint.text_encoder.config.eos_token_id
            arrays[spec.name] = ids
        elif spec.name == "timestep":
            arrays[spec.name] = np.linspace(0, 999, shape[0], dtype=np.float32)
        else:
            arrays[spec.name] = rng.standard_normal(shape, dtype=np.float32)
    return arrays
