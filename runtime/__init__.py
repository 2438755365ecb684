"""Run a latent diffusion bundle without torch.

A public name is imported when it is first asked for, so that the errors and the command line's help load no NumPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import BundleError, EngineNotFound, InvalidRequest, LdmrtError, LdmrtWarning, NotFinite

if TYPE_CHECKING:
    from .backends.registry import BACKENDS, available_backends
    from .bundle.bundle import Bundle
    from .bundle.certificate import Certificate
    from .pipeline.autoencoder.upscale_model import UpscaleModel
    from .pipeline.autoencoder.upscale_model import open_upscale_model as open_upscaler
    from .pipeline.call import Result
    from .pipeline.opening import open_pipeline as open
    from .pipeline.pipeline import Pipeline
    from .pipeline.refined import RefinedPipeline
    from .pipeline.request.request import Request
    from .samplers.loop import State, sample, steps
    from .samplers.plan import Plan
    from .samplers.registry import SCHEDULERS, plan_from_config
    from .tensors import Engine, TensorSpec

__all__ = [
    "BACKENDS",
    "SCHEDULERS",
    "Bundle",
    "BundleError",
    "Certificate",
    "Engine",
    "EngineNotFound",
    "InvalidRequest",
    "LdmrtError",
    "LdmrtWarning",
    "NotFinite",
    "Pipeline",
    "Plan",
    "RefinedPipeline",
    "Request",
    "Result",
    "State",
    "TensorSpec",
    "UpscaleModel",
    "available_backends",
    "open",
    "open_upscaler",
    "plan_from_config",
    "sample",
    "steps",
]

# name -> the module that defines it, and its name there if it is another
_LAZY = {
    "BACKENDS": "backends.registry",
    "SCHEDULERS": "samplers.registry",
    "Bundle": "bundle.bundle",
    "Certificate": "bundle.certificate",
    "Engine": "tensors",
    "Pipeline": "pipeline.pipeline",
    "Plan": "samplers.plan",
    "RefinedPipeline": "pipeline.refined",
    "Request": "pipeline.request.request",
    "Result": "pipeline.call",
    "State": "samplers.loop",
    "TensorSpec": "tensors",
    "UpscaleModel": "pipeline.autoencoder.upscale_model",
    "available_backends": "backends.registry",
    "open": "pipeline.opening:open_pipeline",
    "open_upscaler": "pipeline.autoencoder.upscale_model:open_upscale_model",
    "plan_from_config": "samplers.registry",
    "sample": "samplers.loop",
    "steps": "samplers.loop",
}

if not TYPE_CHECKING:  # a type checker shall find misspelt names

    def __getattr__(name: str) -> Any:
        """Import a public name and keep it."""
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, attribute = _LAZY[name].partition(":")
        value = getattr(import_module(f".{module}", __name__), attribute or name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """List the public names too that were not yet asked for."""
    return sorted({*globals(), *__all__})
