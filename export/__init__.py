"""From a checkpoint to a bundle: ONNX files, their manifest, and the proof that nothing changed; then its engines."""

from importlib.util import find_spec

if find_spec("torch"):  # which ldmrt.export.build does without: an engine is made of ONNX files alone
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
