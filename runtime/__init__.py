"""Run a latent diffusion bundle without torch."""

from .bundle import Bundle
from .certificate import Certificate
from .errors import LdmrtError, LdmrtWarning
from .files import write_atomically
from .pipeline import Pipeline, Result
from .pipeline import open_pipeline as open
from .refined import RefinedPipeline
from .request import Request
from .sampler import Plan, State, sample, steps
from .schedulers import SCHEDULERS, plan_from_config

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
