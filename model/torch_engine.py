"""Run a PyTorch module as an engine, so that the runtime's own pipeline can run the reference."""

import numpy as np
import torch
from torch import nn

from ldmrt.runtime.tensors import Array, Arrays, TensorSpec, conform


class TorchEngine:
    """Runs a module whose forward takes the named inputs and returns a tuple of the outputs."""

    def __init__(
        self,
        component: str,
        module: nn.Module,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        """Put the module into eval mode.

        Args:
            component: The name that errors have for it.
            module: The module, whose forward takes the inputs by name.
            inputs: Names, dtypes and shapes of the inputs.
            outputs: The same of the outputs, in the order in which forward returns them.
        """
        self.component, self.module, self.inputs, self.outputs = component, module.eval(), inputs, outputs

    @torch.no_grad()
    def __call__(self, **arrays: Array) -> Arrays:
        """Run the module once, without gradients.

        Args:
            arrays: The inputs by name; they are converted to their specs' dtypes.

        Returns:
            The outputs by name.

        Raises:
            LdmrtError: An input is missing or of another shape.
        """
        feeds = {name: torch.from_numpy(array) for name, array in conform(self.component, self.inputs, arrays).items()}
        results: tuple[torch.Tensor, ...] = self.module(**feeds)
        return {spec.name: np.asarray(out) for spec, out in zip(self.outputs, results, strict=True)}

    def close(self) -> None:
        """Do nothing: the module belongs to the checkpoint, which frees it."""
