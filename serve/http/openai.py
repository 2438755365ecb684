"""Serve OpenAI's images API: https://platform.openai.com/docs/api-reference/images."""

import base64
import time
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, File, Form, UploadFile
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HTTPRequest

from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.serve.jobs.job import Job

from .bodies import Options
from .errors import NotFound
from .images import encoded, opened
from .state import server_of
from .submitting import ended, submit

router = APIRouter(prefix="/v1", tags=["OpenAI"])
Format = Literal["b64_json", "url"]


class Generation(Options):
    """A request of OpenAI's images API; diffusers' arguments are further fields, and others are left unheeded."""

    model_config = ConfigDict(extra="ignore")

    prompt: str
    model: str | None = None
    n: int = Field(1, ge=1)
    size: str | None = Field(None, description="auto, or WIDTHxHEIGHT in pixels; the model's own by default.")
    response_format: Format = "b64_json"
    user: str | None = None

    def request(self) -> Request:
        """Return the request; an `InvalidRequest` says what is wrong."""
        fields = {**size_of(self.size), **self.fields()}
        return Request(self.prompt, num_images_per_prompt=self.n, **fields)


def size_of(size: str | None) -> dict[str, Any]:
    """Return the width and height of a size as OpenAI's clients write it; nothing for `auto`."""
    if size in (None, "auto", ""):
        return {}
    width, _, height = str(size).partition("x")
    if not (width.isdecimal() and height.isdecimal()) or len(str(size)) > 20:
        raise InvalidRequest("size", "no size", expected="auto, or WIDTHxHEIGHT such as 512x512", found=f"{size!r:.50}")
    return {"width": int(width), "height": int(height)}


def listed(http: HTTPRequest, name: str) -> dict[str, Any]:
    """Return what there is to say of a model, with its certificate's verdict."""
    server = server_of(http)
    pipeline = server.service.models[name]
    certificate = pipeline.certificate
    verdict = None if certificate is None else {"within": certificate.within, "failures": certificate.failures}
    return {
        "id": name,
        "object": "model",
        "created": int(server.started),
        "owned_by": "ldmrt",
        "size": pipeline.stage.size,
        "stages": [stage.stage.name for stage in pipeline.stages],
        "certificate": verdict,
    }


@router.get("/models")
async def models(http: HTTPRequest) -> dict[str, Any]:
    """List the models."""
    return {"object": "list", "data": [listed(http, name) for name in server_of(http).service.models]}


@router.get("/models/{name:path}")
async def model(http: HTTPRequest, name: str) -> dict[str, Any]:
    """Tell of one model."""
    if name not in server_of(http).service.models:
        raise NotFound("request", f"no model {name!r:.100}", expected=", ".join(server_of(http).service.models))
    return listed(http, name)


@router.post("/images/generations")
async def generations(http: HTTPRequest, generation: Generation) -> dict[str, Any]:
    """Draw images of a prompt."""
    job = await submit(http, generation.request, generation.model)
    await ended(http, job)
    return await run_in_threadpool(answer, http, job, generation.response_format)


@router.post("/images/edits")
async def edits(
    http: HTTPRequest,
    image: Annotated[UploadFile, File()],
    prompt: Annotated[str, Form()],
    mask: Annotated[UploadFile | None, File()] = None,
    model: Annotated[str | None, Form()] = None,
    n: Annotated[int, Form(ge=1)] = 1,
    size: Annotated[str | None, Form()] = None,
    response_format: Annotated[Format, Form()] = "b64_json",
    strength: Annotated[float | None, Form()] = None,
    seed: Annotated[int | None, Form()] = None,
    num_inference_steps: Annotated[int | None, Form(ge=1)] = None,
    guidance_scale: Annotated[float | None, Form()] = None,
    scheduler: Annotated[str | None, Form()] = None,
    negative_prompt: Annotated[str | None, Form()] = None,
) -> dict[str, Any]:
    """Draw over an image: all of it, or where the mask is transparent, as OpenAI has it."""
    given: dict[str, Any] = {
        "strength": strength,
        "seed": seed,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "scheduler": scheduler,
        "negative_prompt": negative_prompt,
    }
    given["image"], masked = await image.read(), None if mask is None else await mask.read()

    def request() -> Request:
        fields = {name: value for name, value in given.items() if value is not None}
        fields["image"] = opened("image", fields["image"])
        if masked is not None:
            fields["mask_image"] = transparent(masked)
        return Request(prompt, num_images_per_prompt=n, **size_of(size), **fields)

    job = await submit(http, request, model)
    await ended(http, job)
    return await run_in_threadpool(answer, http, job, response_format)


def transparent(mask: bytes) -> NDArray[np.uint8]:
    """Return a mask (H, W) that is white where the given one is transparent: where OpenAI's API changes the image.

    Raises:
        InvalidRequest: The image has no transparency.
    """
    image = opened("mask", mask)
    if "A" not in image.getbands():
        raise InvalidRequest("mask", "no transparency", expected="an image that is transparent where it shall change")
    return 255 - np.asarray(image.getchannel("A"))


def answer(http: HTTPRequest, job: Job, form: Format) -> dict[str, Any]:
    """Return the images of a job as OpenAI's clients read them."""
    if form == "url":
        base = str(http.base_url).rstrip("/")
        data = [{"url": f"{base}/v1/requests/{job.id}/images/{number}"} for number in range(job.request.total_images)]
    else:
        data = [{"b64_json": base64.b64encode(one).decode()} for one in encoded(job)]
    seeds = job.result(0).seeds
    return {"created": int(time.time()), "data": [{**one, "seed": seed} for one, seed in zip(data, seeds, strict=True)]}
