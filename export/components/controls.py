"""Inputs and outputs of the networks that control the U-Net by an image.

Each kind is a line of `CONTROLS`. Its outputs are inputs of the U-Net, with the same names and shapes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ldmrt.model.checkpoint.checkpoint import Checkpoint, class_of
from ldmrt.model.networks.controls.controlnet import ControlNet, scaled
from ldmrt.model.networks.controls.t2i_adapter import Adapter
from ldmrt.model.networks.unet import UNet
from ldmrt.model.networks.unet_encoder import UNetEncoder
from ldmrt.runtime.bundle.stages import CLASSES
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.pipeline.denoising.controls import ADAPTER, CONTROLNET
from ldmrt.runtime.tensors import TensorSpec

from .specs import conditioning, dtype_of, image, latent

RESIDUAL, FEATURE = "down_block_residual_", "down_intrablock_residual_"
SpecsOf = Callable[..., list[TensorSpec]]  # of a network of the checkpoint and its dtype
SCALE = TensorSpec("conditioning_scale", "float32", ("batch",))


@dataclass(frozen=True)
class Control:
    """Describes a kind of such networks."""

    prefix: str  # of the components' names
    module: Callable[[nn.Module], nn.Module]
    inputs: SpecsOf
    outputs: SpecsOf  # also of the U-Net: what it takes from such a network


class _ControlNet(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        """Wrap a network."""
        super().__init__()
        self.model = model

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        conditioning_scale: Tensor,
        **added: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return the residuals of the down blocks and of the middle."""
        down, mid = self.model(sample, timestep, encoder_hidden_states, controlnet_cond, conditioning_scale, **added)
        return *down, mid


def _controlnet_inputs(c: Checkpoint, model: ControlNet, dtype: str) -> list[TensorSpec]:
    return [
        latent(c, "sample", model.config.in_channels, dtype),
        TensorSpec("timestep", "float32", ("batch",)),
        *(spec for spec in conditioning(c, dtype) if spec.name != CLASSES or model.config.num_class_embeds),
        image(f"{CONTROLNET}cond", model.config.conditioning_channels, dtype),
        SCALE,
    ]


def _residuals(c: Checkpoint, model: UNetEncoder, dtype: str) -> list[TensorSpec]:
    """Return one residual for each skip of the U-Net and one for its middle."""
    factor, last = c.stage.space.factor, len(model.config.block_out_channels) - 1
    levels = [0]  # of each skip
    for level, layers in enumerate(model.config.layers):
        levels += [level] * layers + [level + 1] * (level < last)
    specs = [
        image(f"{RESIDUAL}{i}", channels, dtype, factor * 2**level)
        for i, (channels, level) in enumerate(zip(model.skip_channels, levels, strict=True))
    ]
    return [*specs, image("mid_block_residual", model.config.block_out_channels[last], dtype, factor * 2**last)]


class _Adapter(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        """Wrap a network."""
        super().__init__()
        self.model = model

    def forward(self, adapter_cond: Tensor, conditioning_scale: Tensor) -> tuple[Tensor, ...]:
        factor = conditioning_scale.reshape(-1, 1, 1, 1)
        return tuple(scaled(feature, factor) for feature in self.model(adapter_cond))


def _adapter_inputs(c: Checkpoint, model: Adapter, dtype: str) -> list[TensorSpec]:
    return [image(f"{ADAPTER}cond", model.config.in_channels, dtype), SCALE]


def _features(c: Checkpoint, model: Adapter | UNet, dtype: str) -> list[TensorSpec]:
    """Return one feature for each level of the U-Net, which counts in latents, and perhaps one for its middle."""
    unit = c.stage.space.factor if model is c.denoiser else 1
    return [
        image(f"{FEATURE}{i}", width, dtype, unit * divisor) for i, (width, divisor) in enumerate(model.config.features)
    ]


CONTROLS = {  # by diffusers' class
    "ControlNetModel": Control(CONTROLNET, _ControlNet, _controlnet_inputs, _residuals),
    "T2IAdapter": Control(ADAPTER, _Adapter, _adapter_inputs, _features),
}


def steering(c: Checkpoint, dtype: str) -> list[TensorSpec]:
    """Return the inputs of the U-Net that the checkpoint's controls output."""
    kinds = {class_of(model) for model in c.controls.values()}
    if not kinds:
        return []
    if not isinstance(c.denoiser, UNet):
        raise LdmrtError("export", f"{class_of(c.denoiser)} takes no controls", expected="UNet2DConditionModel")
    return [
        spec for kind, control in CONTROLS.items() if kind in kinds for spec in control.outputs(c, c.denoiser, dtype)
    ]


def check_fit(c: Checkpoint, name: str, model: ControlNet | Adapter, outputs: Sequence[TensorSpec]) -> None:
    """Check that a control was trained for a U-Net of this shape.

    Raises:
        LdmrtError: Its conditioning or its residuals have other widths than the U-Net's.
    """
    for width in ("cross_attention_dim", "projection_class_embeddings_input_dim", "num_class_embeds"):
        expected, found = getattr(c.unet.config, width, None), getattr(model.config, width, None)
        if found is not None and found != expected:
            raise LdmrtError(name, f"does not fit this U-Net in {width}", expected=expected, found=found)
    taken = {spec.name: spec.shape for spec in steering(c, dtype_of(c.unet))}
    for spec in outputs:
        if taken.get(spec.name) != spec.shape:
            wanted = taken.get(spec.name, f"only {', '.join(taken)}")
            raise LdmrtError(name, f"does not fit this U-Net in {spec.name}", expected=wanted, found=spec.shape)
