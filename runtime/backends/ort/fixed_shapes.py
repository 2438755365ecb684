"""Runs a graph on a GPU in one ONNX Runtime session for each set of shapes, so that CUDA graphs can be captured.

ONNX Runtime computes shapes on the CPU and copies in between, and then it captures nothing. With all dimensions fixed
there is nothing to compute.
"""

from collections.abc import Callable, Collection, Mapping

from ldmrt.runtime.backends.by_sizes import BySizes, Sizes, sizes_in
from ldmrt.runtime.bundle.graphs import SAVED, most_rows, steps_of
from ldmrt.runtime.tensors import Array, Arrays, Shapes, Specs

from .binding import OrtBinding
from .engine import TURN, OrtEngine


class FixedShapes:
    """Opens and keeps the sessions of a graph."""

    def __init__(
        self, component: str, ends: tuple[Specs, Specs], open_with: Callable[[Sizes | None], OrtEngine]
    ) -> None:
        """Hold what opens a session; none is opened yet.

        Args:
            component: The component that errors name.
            ends: The inputs and the outputs of the graph.
            open_with: Opens a session, given the size of each symbolic dimension.
        """
        self.component = component
        self.inputs, self.outputs = ends
        # Freeing the memory of a session would disturb the capture of a CUDA graph.
        self._sessions = BySizes(component, open_with, freeing=TURN)

    def bind(self, shapes: Shapes, feedback: Mapping[str, str], most: Collection[str] = ()) -> OrtBinding:
        """Return the binding of a session for these shapes, which may have more of the dimensions in `most`.

        Rows, saved latents and draws are rounded up as for engines of TensorRT, so that samplers share a session.
        """
        dims = sizes_in(self.inputs, shapes)
        dims |= {dim: size for dim, size in _roomy(dims).items() if dim in most}
        sizes = {
            spec.name: tuple(dims[dim] if isinstance(dim, str) else dim for dim in spec.shape) for spec in self.inputs
        }
        return self._sessions.of(dims).bind(sizes, feedback)

    def __call__(self, **arrays: Array) -> Arrays:
        """Run once."""
        binding = self.bind({spec.name: arrays[spec.name].shape for spec in self.inputs}, {})
        with binding.claim:
            binding.upload(**arrays)
            binding.launch()
            return binding.download()

    def close(self) -> None:
        """Free all sessions."""
        for session in self._sessions.close():
            session.close()


def _roomy(dims: Mapping[str, int]) -> dict[str, int]:
    """Return sizes of the fused step's own dimensions that suit most samplers."""
    rows, saved = most_rows(steps_of(dims["rows"])), max(SAVED, dims["saved"])
    return {"rows": rows, "saved": saved, "terms": saved + 2, "draws": rows}
