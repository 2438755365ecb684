"""Run a latent diffusion bundle without torch."""

from .errors import LdmrtError, LdmrtWarning
from .files import write_atomically
from .sampler import Plan, State, sample, steps
from .schedulers import SCHEDULERS, plan_from_config

__all__ = [
    "SCHEDULERS",
    "LdmrtError",
    "LdmrtWarning",
    "Plan",
    "State",
    "plan_from_config",
    "sample",
    "steps",
    "write_atomically",
]
