"""From a checkpoint to a bundle: ONNX files, their manifest, and the proof that nothing changed."""

from .bundle import Exported, export_bundle
from .parity import Difference, compare
from .reference import torch_pipeline

__all__ = ["Difference", "Exported", "compare", "export_bundle", "torch_pipeline"]
