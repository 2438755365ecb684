"""Run a latent diffusion bundle without torch.

A public name is imported when it is first asked for, so that the errors and the command line's help load no NumPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import LdmrtError, LdmrtWarning

if TYPE_CHECKING:
    from .bundle.bundle import Bundle
    from .bundle.certificate import Certificate
    from .files.writing import write_atomically
    from .pipeline.pipeline import Pipeline, Result
    from .pipeline.pipeline import open_pipeline as open
    from .pipeline.refined import RefinedPipeline
    from .pipeline.request import Request
    from .samplers.loop import State, sample, steps
    from .samplers.plan import Plan
    from .samplers.registry import SCHEDULERS, plan_from_config

__all__ = [
    "SCHEDULERS",
    "Bundle",
    "Certificate",
    "LdmrtError",
    "LdmrtWarning",
    "Pipeline",
    "Plan",
    "RefinedPipeline",
    "Request",
    "Result",
    "State",
    "open",
    "plan_from_config",
    "sample",
    "steps",
    "write_atomically",
]

# name -> the module that defines it, and its name there if it is another
_LAZY = {
    "SCHEDULERS": "samplers.registry",
    "Bundle": "bundle.bundle",
    "Certificate": "bundle.certificate",
    "Pipeline": "pipeline.pipeline",
    "Plan": "samplers.plan",
    "RefinedPipeline": "pipeline.refined",
    "Request": "pipeline.request",
    "Result": "pipeline.pipeline",
    "State": "samplers.loop",
    "open": "pipeline.pipeline:open_pipeline",
    "plan_from_config": "samplers.registry",
    "sample": "samplers.loop",
    "steps": "samplers.loop",
    "write_atomically": "files.writing",
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
