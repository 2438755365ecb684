"""From a checkpoint to a bundle: ONNX files, their manifest, and the proof that nothing changed."""

from .bundle import Exported, export_bundle
from .components import components
from .parity import other_origin, store
from .record import record
from .reference import torch_pipeline

__all__ = [
    "Exported",
    "components",
    "export_bundle",
    "other_origin",
    "record",
    "store",
    "torch_pipeline",
]
