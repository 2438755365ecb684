"""Find the modules that the layers of a LoRA file are for, and refuse a file that is for another family of models."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from ldmrt.model.checkpoint.folder import T5
from ldmrt.model.networks.unet import UNet
from ldmrt.runtime.bundle.stage_of_configs import FLUX, PIXART, SANA, SD3
from ldmrt.runtime.errors import LdmrtError

from .files import refuse
from .layers import Layer, Shape
from .names import OTHERWISE, targets
from .rows import divide

Layers = Mapping[tuple[str, str], Layer]  # by the component and the module's name with "_" for "."
DENOISERS = ("unet", "transformer")
UNETS = "Stable Diffusion 1.x, 2.x or XL"
# Families by the first words of a layer's name that few others have
FAMILIES = {
    r"(?:down|up)_blocks_\d|mid_block_|(?:input|output)_blocks_\d|middle_block_": UNETS,
    r"single_transformer_blocks_\d|(?:double|single)_blocks_\d": "FLUX.1",
    r"transformer_blocks_\d+_attn[12]_": "PixArt",
    r"transformer_blocks_\d+_(?:attn[12]|ff_conv)_": "Sana",
    r"joint_blocks_\d|transformer_blocks_\d+_attn2_": "Stable Diffusion 3 or 3.5",
}
NETWORKS = {
    UNet.__name__: UNETS, FLUX: "FLUX.1", SD3: "Stable Diffusion 3 or 3.5", PIXART: "PixArt", SANA: "Sana",
}  # fmt: skip


def placed(name: str, layers: Layers, networks: Mapping[str, nn.Module]) -> dict[tuple[str, str], Layer]:
    """Return the layers of a file by component and module.

    Each layer must belong to a module of its own, or to several modules, which then get its rows.

    Args:
        name: The file's name, for errors.
        layers: The file's layers.
        networks: The networks by the names of a checkpoint's parts.

    Raises:
        LdmrtError: The file is for another family, or a layer matches no module, one that has another, or its shape.
    """
    _check_family(name, layers, networks)
    _check_t5(name, layers, networks)
    parameters = {component: dict(network.named_parameters()) for component, network in networks.items()}
    every = {component: targets(network) for component, network in networks.items()}
    found: dict[tuple[str, str], Layer] = {}
    unplaced, unfit, divided = [], [], []
    for (stated, module_name), layer in layers.items():
        component = stated if stated in networks else OTHERWISE.get(stated, stated)
        target = every.get(component, {}).get(module_name)
        if target is None:
            unplaced.append(layer.name)
            continue
        weights, biases = (
            [_shape(parameters[component].get(f"{module}.{kind}")) for module in target.modules]
            for kind in ("weight", "bias")
        )
        if how := layer.misfits(_joined(weights), _joined(biases)):
            unfit.append(f"{layer.name} of {how}")
            continue
        if len(target.modules) > 1 and layer.magnitude is not None and layer.magnitude.by_column:
            divided.append(layer.name)
            continue
        for module, part in divide(layer, target).items():
            if (component, module) in found:
                both = f"{found[component, module].name} and {layer.name}"
                raise LdmrtError("lora", f"{name} holds one layer twice", found=both)
            found[component, module] = part
    hint = "a LoRA fits the family that it was trained on: 1.x, 2.x or XL, 3 or 3.5, FLUX.1, PixArt, Sana"
    refuse(name, unplaced, len(layers), "layers", f"match no module of {', '.join(networks)}", hint)
    refuse(name, unfit, len(layers), "layers", "have another shape than the weight", hint)
    refuse(name, divided, len(layers), "layers", "have norms of columns that several modules share")
    return found


def _check_family(name: str, layers: Layers, networks: Mapping[str, nn.Module]) -> None:
    """Refuse a file whose layers have names that together only another family has."""
    own = next((NETWORKS.get(type(networks[one]).__name__) for one in DENOISERS if one in networks), None)
    of_each = [
        {family for pattern, family in FAMILIES.items() if re.match(pattern, module)}
        for component, module in layers
        if component in DENOISERS
    ]
    known = [families for families in of_each if families]
    made_for = set.intersection(*known) if known else set()
    if own is not None and made_for and own not in made_for:
        found, hint = f"one of {', '.join(sorted(made_for))}", "a LoRA that was trained on the checkpoint's family"
        raise LdmrtError(
            "lora", f"{name} is for another family of models", expected=f"a LoRA of {own}", found=found, hint=hint
        )


def _check_t5(name: str, layers: Layers, networks: Mapping[str, nn.Module]) -> None:
    """Refuse a file with layers of T5 where the model has none, or it was left out."""
    if any(stated == "text_encoder_3" for stated, _ in layers):
        kinds = {type(network).__name__ for network in networks.values()}
        if "transformer" in networks and T5 not in kinds:
            problem, hint = f"{name} changes T5, which this model lacks", "ldmrt export without --without-t5"
            raise LdmrtError("lora", problem, expected="a LoRA of the other networks", hint=hint)


def _shape(tensor: Tensor | None) -> Shape | None:
    """Return the shape of a parameter, if there is one."""
    return None if tensor is None else tuple(tensor.shape)


def _joined(shapes: list[Shape | None]) -> Shape | None:
    """Return the shape of parameters whose rows stand one below the other; None where one is missing."""
    present = [shape for shape in shapes if shape is not None]
    if len(present) < len(shapes):
        return None
    return (sum(shape[0] for shape in present), *present[0][1:])
