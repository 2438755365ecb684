"""List the samplers that a model can be drawn with, and the noise levels that each walks through."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.pipeline.request.checks import LARGEST_STEPS
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.plan import Plan
from ldmrt.runtime.samplers.registry import SCHEDULERS, SPACINGS, everyday_name
from ldmrt.serve.models.naming import chosen

PURE_NOISE = 1e-6  # alpha below which sigma / alpha says nothing
STEPS = 20  # of a plan that is only tried


def router(models: Mapping[str, Pipeline]) -> APIRouter:
    """Return the route that lists the samplers of models.

    Args:
        models: The pipelines by name; the first is the default.
    """
    routes = APIRouter(prefix="/v1", tags=["ldmrt"])
    names: dict[str, list[str]] = {}

    def listed(model: str | None, name: str | None, steps: int) -> dict[str, Any]:
        model = chosen(models, model)
        pipeline = models[model]
        if model not in names:
            names[model] = usable(pipeline)
        told: dict[str, Any] = {
            "model": model,
            "default": everyday_name(pipeline.scheduler),
            "samplers": names[model],
            "multiple": pipeline.stage.space.unit,
        }
        if name is not None:
            told["plan"] = {"name": name, **described(plan_of(pipeline, name, steps))}
        return told

    @routes.get("/samplers")
    async def samplers(
        model: str | None = None, name: str | None = None, steps: int = Query(STEPS, ge=1, le=LARGEST_STEPS)
    ) -> dict[str, Any]:
        """List the samplers of a model by name, and what the sides of its images are multiples of.

        With `name` there is also that sampler's plan: each row's timestep, and its noise level sigma / alpha, which is
        null for pure noise.
        """
        return await run_in_threadpool(listed, model, name, steps)

    return routes


def plan_of(pipeline: Pipeline, name: str, steps: int) -> Plan:
    """Return a sampler's plan; an `InvalidRequest` says what the model has against it."""
    return pipeline.plan(Request("", scheduler=name, num_inference_steps=steps))


def usable(pipeline: Pipeline) -> list[str]:
    """Return the names of the samplers that a model's config has a plan for, also with other spacings."""
    spellings = [name for base in SCHEDULERS for name in (base, *(f"{base}_{kind}" for kind in SPACINGS))]
    return [name for name in spellings if works(pipeline, name)]


def works(pipeline: Pipeline, name: str) -> bool:
    """Tell whether a model's config has a plan for a sampler."""
    try:
        plan_of(pipeline, name, STEPS)
    except LdmrtError:
        return False
    return True


def described(plan: Plan) -> dict[str, list[float | None]]:
    """Return the timestep and the noise level of each row of a plan."""
    pure = plan.alpha <= PURE_NOISE
    levels = plan.sigma / np.where(pure, 1.0, plan.alpha)
    return {
        "timesteps": [float(t) for t in plan.t],
        "sigmas": [None if none else float(level) for none, level in zip(pure, levels, strict=True)],
    }
