"""From a checkpoint to a bundle: ONNX files, their manifest, and the proof that nothing changed; then its engines."""

import importlib
from importlib.util import find_spec
from typing import Any

if find_spec("torch"):  # which ldmrt.export.build does without: an engine is made of ONNX files alone
    from .bundle import Exported, export_bundle
    from .components import components
    from .parity import other_origin, store
    from .record import record
    from .reference import torch_pipeline
else:

    def __getattr__(name: str) -> Any:
        """Say of what is asked for that PyTorch is missing."""
        if name in __all__:
            importlib.import_module("torch")
        raise AttributeError(name)


__all__ = [
    "Exported",
    "components",
    "export_bundle",
    "other_origin",
    "record",
    "store",
    "torch_pipeline",
]
