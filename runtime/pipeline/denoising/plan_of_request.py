"""Make the sampler's table for a request."""

from collections.abc import Callable

from ldmrt.runtime.bundle.stages import Stage
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.config import Config
from ldmrt.runtime.samplers.plan import Plan
from ldmrt.runtime.samplers.registry import plan_from_config
from ldmrt.runtime.samplers.settings import with_settings

from .noise_order import check_noise


def plan_of(request: Request, stage: Stage, scheduler: Config, size: Callable[[], tuple[int, int]]) -> Plan:
    """Return the sampler's table for a request of a stage.

    Args:
        request: The request.
        stage: The stage.
        scheduler: The config of its scheduler.
        size: Returns the height and width of the images in pixels, by which a dynamic shift is chosen.
    """
    config = with_settings(scheduler, request.scheduler_settings, request.scheduler)
    dynamic = bool(config.get("use_dynamic_shifting"))
    plan = plan_from_config(
        config,
        request.num_inference_steps,
        name=request.scheduler,
        eta=request.eta,
        strength=request.strength if request.starts_from_image and not stage.takes_image else 1.0,
        shortened=stage.shortens,
        start=request.denoising_start,
        end=request.denoising_end,
        tokens=stage.tokens(size()) if dynamic else None,
        trailing=stage.trailing,
    )
    check_noise(request, stage, config, plan)
    return plan
