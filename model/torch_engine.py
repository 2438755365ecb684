"""A PyTorch module as an engine, so that the runtime's own pipeline can run the reference."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ldmrt.runtime.tensors import TensorSpec, conform


class TorchEngine:
    """A module whose forward takes the named inputs and returns a tuple of the outputs."""

    def __init__(
        self,
        component: str,
        module: nn.Module,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        self.component, self.module, self.inputs, self.outputs = component, module.eval(), inputs, outputs

    @torch.no_grad()
    def __call__(self, **arrays: NDArray) -> dict[str, NDArray]:
        """Run once."""
        feeds = {name: torch.from_numpy(array) for name, array in conform(self.component, self.inputs, arrays).items()}
        results: tuple[torch.Tensor, ...] = self.module(**feeds)
        return {spec.name: np.asarray(out) for spec, out in zip(self.outputs, results, strict=True)}

    def close(self) -> None:
        """Nothing to free."""
