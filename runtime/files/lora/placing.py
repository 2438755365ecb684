"""Find the modules that the layers of a LoRA file are for, and refuse a file that is for another family of models."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ldmrt.runtime.errors import LdmrtError

from .files import refuse
from .layers import Layer, Shape
from .names import OTHERWISE, flat
from .rows import Target, divide

Layers = Mapping[tuple[str, str], Layer]  # by the component and the module's name with "_" for "."
DENOISERS = ("unet", "transformer")
UNETS = "Stable Diffusion 1.x, 2.x or XL"
# Families by the first words of a layer's name that few others have
FAMILIES = {
    r"(?:down|up)_blocks_\d|mid_block_|(?:input|output)_blocks_\d|middle_block_": UNETS,
    r"single_transformer_blocks_\d|(?:double|single)_blocks_\d": "FLUX.1",
    r"transformer_blocks_\d+_attn[12]_": "PixArt",
    r"transformer_blocks_\d+_(?:attn[12]|ff_conv)_": "Sana",
    r"(?:layers|noise_refiner|context_refiner)_\d+_(?:attention_|feed_forward_|adaLN_)": "Z-Image",
    r"joint_blocks_\d|transformer_blocks_\d+_attn2_": "Stable Diffusion 3 or 3.5",
}
UNET, T5 = "UNet2DConditionModel", "T5EncoderModel"
NETWORKS = {  # by diffusers' classes
    UNET: UNETS, "FluxTransformer2DModel": "FLUX.1", "SD3Transformer2DModel": "Stable Diffusion 3 or 3.5",
    "PixArtTransformer2DModel": "PixArt", "SanaTransformer2DModel": "Sana", "ZImageTransformer2DModel": "Z-Image",
}  # fmt: skip


@dataclass(frozen=True)
class Network:
    """Describes a network that a LoRA is for.

    Attributes:
        kind: Its class in diffusers or transformers.
        shapes: The shape of every parameter by its name, such as "conv_in.weight".
        originals: What the layers are for that another program names otherwise, by their names there.
        unused: Layers that the network has and never computes, by their names with "_" for ".".
    """

    kind: str
    shapes: Mapping[str, Shape] = field(repr=False)
    originals: Mapping[str, Target] = field(default_factory=dict, repr=False)
    unused: Collection[str] = ()

    @property
    def targets(self) -> dict[str, Target]:
        """Every name that a file can give to a layer, with the modules that it is for."""
        own = {key.rpartition(".")[0] for key in self.shapes}
        names = {flat(layer): target for layer, target in self.originals.items()}
        return names | {flat(module): Target({module: None}) for module in own}


HINT = "a LoRA fits the family that it was trained on: 1.x, 2.x or XL, 3 or 3.5, FLUX.1, PixArt, Sana, Z-Image"


def placed(
    name: str, layers: Layers, networks: Mapping[str, Network], hint: str = HINT
) -> dict[tuple[str, str], Layer]:
    """Return the layers of a file by component and module.

    Each layer must belong to a module of its own, or to several modules, which then get its rows.

    Args:
        name: The file's name, for errors.
        layers: The file's layers.
        networks: The networks by the names of a checkpoint's parts.
        hint: What to do with a file of which a layer fits nowhere.

    Raises:
        LdmrtError: The file is for another family, or a layer matches no module, one that has another, or its shape.
    """
    _check_family(name, layers, networks)
    _check_t5(name, layers, networks)
    every = {component: network.targets for component, network in networks.items()}
    found: dict[tuple[str, str], Layer] = {}
    unplaced, unfit, divided = [], [], []
    for (stated, module_name), layer in layers.items():
        component = stated if stated in networks else OTHERWISE.get(stated, stated)
        target = every.get(component, {}).get(module_name)
        if target is None:
            if component not in networks or module_name not in networks[component].unused:
                unplaced.append(layer.name)
            continue
        weights, biases = (
            [networks[component].shapes.get(f"{module}.{kind}") for module in target.modules]
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
    refuse(name, unplaced, len(layers), "layers", f"match no module of {', '.join(networks)}", hint)
    refuse(name, unfit, len(layers), "layers", "have another shape than the weight", hint)
    refuse(name, divided, len(layers), "layers", "have norms of columns that several modules share")
    return found


def _check_family(name: str, layers: Layers, networks: Mapping[str, Network]) -> None:
    """Refuse a file whose layers have names that together only another family has."""
    own = next((NETWORKS.get(networks[one].kind) for one in DENOISERS if one in networks), None)
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


def _check_t5(name: str, layers: Layers, networks: Mapping[str, Network]) -> None:
    """Refuse a file with layers of T5 where the model has none, or it was left out."""
    if any(stated == "text_encoder_3" for stated, _ in layers):
        kinds = {network.kind for network in networks.values()}
        if "transformer" in networks and T5 not in kinds:
            problem, hint = f"{name} changes T5, which this model lacks", "ldmrt export without --without-t5"
            raise LdmrtError("lora", problem, expected="a LoRA of the other networks", hint=hint)


def _joined(shapes: list[Shape | None]) -> Shape | None:
    """Return the shape of parameters whose rows stand one below the other; None where one is missing."""
    present = [shape for shape in shapes if shape is not None]
    if len(present) < len(shapes):
        return None
    return (sum(shape[0] for shape in present), *present[0][1:])
