"""The table of schedulers, and the door from a diffusers scheduler config to a plan."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import LdmrtError
from .sampler import Plan, dpmpp_2m, euler, read
from .schedule import Floats, Nodes, sigma_nodes, whole_nodes

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Scheduler:
    """One line of the table: how a config becomes nodes, and the nodes a table of rows."""

    class_name: str  # in diffusers
    nodes: Callable[[Config, int], Nodes]
    solve: Callable[[Nodes, Config, float, int], Floats]  # nodes, config, eta, steps of the whole grid
    eta: float | None  # the share of a step's noise drawn afresh where the caller does not say; None: draws none
    only: Config  # the values that a config may ask for, of keys that would change the sampler
    scaled_prior: bool = False  # first latents of variance sigma^2 instead of 1


_BETAS = {"trained_betas": None, "rescale_betas_zero_snr": False}
_CLIP = {"clip_sample": False, "thresholding": False}
_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_EULER = {"interpolation_type": "linear", "timestep_type": "discrete", "final_sigmas_type": "zero"}
_DPM = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "euler_at_final": False,
}
_DPM |= {"use_lu_lambdas": False, "use_flow_sigmas": False, "variance_type": None, "thresholding": False}
_DPM |= {"lambda_min_clipped": -math.inf}
# What diffusers takes for a key that a config leaves out, where that is not the value asked for above.
_LEFT_OUT = {"clip_sample": True}


def _euler(nodes: Nodes, config: Config, eta: float, steps: int) -> Floats:
    return euler(nodes, eta)


# By everyday name. A new scheduler is one function and its line here.
SCHEDULERS: dict[str, Scheduler] = {
    "ddim": Scheduler(
        "DDIMScheduler",
        lambda config, steps: whole_nodes(config, steps, strided=True),
        _euler,
        eta=0.0,
        only=_BETAS | _CLIP,
    ),
    "ddpm": Scheduler(
        "DDPMScheduler",
        lambda config, steps: whole_nodes(config, steps, strided=False),
        _euler,
        eta=1.0,
        only=_BETAS | _CLIP | {"variance_type": "fixed_small"},
    ),
    "euler": Scheduler(
        "EulerDiscreteScheduler",
        lambda config, steps: sigma_nodes(config, steps, extra=0, rounded=False),
        _euler,
        eta=0.0,
        only=_BETAS | _SIGMAS | _EULER,
        scaled_prior=True,
    ),
    "euler_a": Scheduler(
        "EulerAncestralDiscreteScheduler",
        lambda config, steps: sigma_nodes({**config, "final_sigmas_type": "zero"}, steps, extra=0, rounded=False),
        _euler,
        eta=1.0,
        only=_BETAS,
        scaled_prior=True,
    ),
    "dpmpp_2m": Scheduler(
        "DPMSolverMultistepScheduler",
        lambda config, steps: sigma_nodes(config, steps, extra=1, rounded=True),
        lambda nodes, config, eta, steps: dpmpp_2m(nodes, bool(config.get("lower_order_final", True)) and steps < 15),
        eta=None,
        only=_BETAS | _SIGMAS | _DPM,
    ),
}
BY_CLASS = {scheduler.class_name: name for name, scheduler in SCHEDULERS.items()}


def find_scheduler(config: Config, name: str | None = None) -> Scheduler:
    """By everyday name, or by the class that the config names."""
    wanted = everyday_name(config) if name is None else name
    if wanted not in SCHEDULERS:
        raise LdmrtError(
            "scheduler",
            f"unknown scheduler {config.get('_class_name') if name is None else name!r}",
            expected=", ".join(SCHEDULERS),
            hint="--scheduler ddim",
        )
    return SCHEDULERS[wanted]


def everyday_name(config: Config) -> str | None:
    """The name in `SCHEDULERS` of the class that a config names, if it is there."""
    return BY_CLASS.get(str(config.get("_class_name")))


def plan_from_config(
    config: Config, steps: int, *, name: str | None = None, strength: float = 1.0, eta: float | None = None
) -> Plan:
    """The plan of a diffusers scheduler_config.json.

    `name` takes another scheduler on the same config, as diffusers' `from_config` does. `strength` below 1 starts
    later, as its img2img pipelines count it. `eta` is the share of fresh noise, 0 to 1.
    """
    scheduler = find_scheduler(config, name)
    for key, value in scheduler.only.items():
        found = config.get(key, _LEFT_OUT.get(key, value))
        if found != value:
            problem = f"{scheduler.class_name} with this {key} is not supported"
            raise LdmrtError("scheduler", problem, expected=value, found=found)
    if not 0.0 < strength <= 1.0:
        raise LdmrtError("scheduler", "impossible strength", expected="above 0, at most 1", found=strength)
    if eta and scheduler.eta is None:
        raise LdmrtError("scheduler", f"{scheduler.class_name} draws no noise", expected="no eta", found=eta)
    eta = eta if eta is not None else scheduler.eta or 0.0
    if not 0.0 <= eta <= 1.0:
        raise LdmrtError("scheduler", "impossible eta", expected="0 to 1", found=eta)
    whole = scheduler.nodes(config, steps)
    nodes = whole[steps - max(1, int(steps * strength)) :]
    table = scheduler.solve(nodes, config, eta, steps)
    if (np.diff(whole.t) >= 0).any() or not np.isfinite(table).all():
        raise LdmrtError("scheduler", "the grid is too fine for this scheduler", expected="fewer steps", found=steps)
    scaled = scheduler.scaled_prior and config.get("timestep_spacing", "linspace") != "leading"
    return Plan(
        t=nodes.t,
        read=read(str(config.get("prediction_type", "epsilon")), nodes),
        table=table,
        alpha=nodes.alpha,
        sigma=nodes.sigma,
        prior_scale=float(nodes.sigma[0]) if scaled else 1.0,
    )
