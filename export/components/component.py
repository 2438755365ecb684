"""Define a component: one network of a model, with the names and symbolic shapes of what it takes and gives."""

from dataclasses import dataclass, field, replace

import torch
from torch import nn

from ldmrt.model.torch_engine import TorchEngine
from ldmrt.runtime.bundle.graphs import DECODER, DENOISERS, ENCODER, STEP, step_specs
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.tensors import Specs, split_symbol

from .autoencoder_parts import tile_specs
from .specs import dtype_of

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Component:
    """One network of the model, as it is exported."""

    name: str
    module: nn.Module = field(repr=False)  # forward takes the inputs by name, returns a tuple
    inputs: Specs
    outputs: Specs
    config: JsonObject = field(repr=False)  # its config.json in the bundle
    patch: int = 1  # pixels, or latents, along one side that the network reads as one
    vocabulary: tuple[int, int] = (0, 0)  # of input_ids: entries, and the id that ends a text
    pad: int | None = None  # of input_ids: the id behind the end, where it is not read
    classes: int = 0  # of class_labels

    def engine(self) -> TorchEngine:
        """Return the reference engine."""
        return TorchEngine(self.name, self.module, self.inputs, self.outputs)

    def in_float32(self) -> "Component":
        """Return the component as one that takes and gives float32."""
        inputs, outputs = (
            tuple(one if one.dtype == "int64" else replace(one, dtype="float32") for one in side)
            for side in (self.inputs, self.outputs)
        )
        return replace(self, inputs=inputs, outputs=outputs)

    @property
    def graphs(self) -> dict[str, tuple[Specs, Specs]]:
        """Return inputs and outputs of the graphs beside its own, which share its weights, by their names."""
        if self.name in DENOISERS:
            step = step_specs(self.inputs, self.outputs)
            return {} if step is None else {STEP: step}
        if self.name.startswith((DECODER, ENCODER)) and self.precision != "bf16":  # which NumPy cannot keep
            parts = tile_specs(self.inputs, self.outputs, self.module)
            return {self.name + part: specs for part, specs in parts.items()}
        return {}

    @property
    def unit(self) -> int:
        """Return the number of pixels that an image's sides must be multiples of."""
        dims = [dim for spec in self.inputs + self.outputs for dim in spec.shape if isinstance(dim, str)]
        return max(split_symbol(dim)[1] for dim in dims) * self.patch

    @property
    def precision(self) -> str:
        """Return the precision: fp32, fp16 or bf16."""
        return next(name for name, dtype in PRECISIONS.items() if str(dtype) == f"torch.{dtype_of(self.module)}")
