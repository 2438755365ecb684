"""Serve OpenAI's images API: https://platform.openai.com/docs/api-reference/images."""

import base64
import time
from typing import Any

import numpy as np
from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HTTPRequest

from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.serve.http.errors import DRAWN, SEEN, NotFound
from ldmrt.serve.http.images import compressed, in_base64, opened
from ldmrt.serve.http.state import server_of
from ldmrt.serve.http.submitting import ended, submit
from ldmrt.serve.jobs.job import Job

from .openai_fields import Edit, Generation, OpenAIFields

router = APIRouter(prefix="/v1", tags=["OpenAI"])
MOST_FILES = 17  # OpenAI's own limit of images, and a mask: several images have an error that says so
FILES = {"image": "image", "image[]": "image", "mask": "mask"}  # names in a form; clients write lists with []


def described() -> dict[str, Any]:
    """Describe the form of an edit for OpenAPI, as it is read by hand."""
    schema = Edit.model_json_schema()
    files = {name: {"type": "string", "format": "binary"} for name in ("image", "mask")}
    schema |= {"properties": schema["properties"] | files, "required": ["prompt", "image"]}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


DESCRIBED = described()


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
        "guidance_scale": pipeline.stage.guidance_scale,
        "stages": [stage.stage.name for stage in pipeline.stages],
        "loaded": server.service.is_loaded(name),
        "certificate": verdict,
    }


@router.get("/models")
async def models(http: HTTPRequest) -> dict[str, Any]:
    """List the models."""
    return {"object": "list", "data": [listed(http, name) for name in server_of(http).service.models]}


@router.get("/models/{name:path}", responses=SEEN)
async def model(http: HTTPRequest, name: str) -> dict[str, Any]:
    """Tell of one model; its certificate is whole."""
    if name not in server_of(http).service.models:
        raise NotFound("request", f"no model {name!r:.100}", expected=", ".join(server_of(http).service.models))
    certificate = server_of(http).service.models[name].certificate
    whole = {} if certificate is None else {"certificate": {"failures": certificate.failures, **certificate.to_json()}}
    return listed(http, name) | whole


@router.post("/images/generations", responses=DRAWN)
async def generations(http: HTTPRequest, generation: Generation) -> dict[str, Any]:
    """Draw images of a prompt."""
    job = await submit(http, generation.request, generation.model)
    await ended(http, job)
    return await run_in_threadpool(answer, http, job, generation)


@router.post("/images/edits", responses=DRAWN, openapi_extra=DESCRIBED)
async def edits(http: HTTPRequest) -> dict[str, Any]:
    """Draw over an image: all of it, or where the mask is transparent, as OpenAI has it."""
    edit, files = await form_of(http)

    def request() -> Request:
        fields = edit.fields()
        fields["image"] = opened("image", files["image"])
        if "mask" in files:
            fields["mask_image"] = transparent(files["mask"])
        return Request(edit.prompt, **fields)

    job = await submit(http, request, edit.model)
    await ended(http, job)
    return await run_in_threadpool(answer, http, job, edit)


async def form_of(http: HTTPRequest) -> tuple[Edit, dict[str, bytes]]:
    """Read the form of an edit.

    Returns:
        Its texts, and its files by name.

    Raises:
        InvalidRequest: It has no image, or several.
        RequestValidationError: A text is unknown, missing or invalid.
    """
    texts, files = dict[str, str](), dict[str, bytes]()
    async with http.form(max_files=MOST_FILES) as form:
        for name, value in form.multi_items():
            if isinstance(value, str):
                texts[name] = value
                continue
            if name not in FILES:
                raise InvalidRequest(f"{name:.50}", "unsupported", expected="the files image and mask")
            if FILES[name] in files:
                raise InvalidRequest(FILES[name], "several images", expected="one image")
            files[FILES[name]] = await value.read()
    if "image" not in files:
        raise InvalidRequest("image", "is missing", expected="a file of the form")
    try:
        return Edit.model_validate(texts), files
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def transparent(mask: bytes) -> NDArray[np.uint8]:
    """Return a mask (H, W) that is white where the given one is transparent: where OpenAI's API changes the image.

    Raises:
        InvalidRequest: The image has no transparency.
    """
    image = opened("mask", mask)
    if "A" not in image.getbands():
        raise InvalidRequest("mask", "no transparency", expected="an image that is transparent where it shall change")
    return 255 - np.asarray(image.getchannel("A"))


def answer(http: HTTPRequest, job: Job, asked: OpenAIFields) -> dict[str, Any]:
    """Return the images of a job as OpenAI's clients read them, each with its seed."""
    form, result = asked.output_format or "png", job.result(0)
    if asked.response_format == "url":
        base = str(http.base_url).rstrip("/")
        data = [{"url": f"{base}/v1/requests/{job.id}/images/{number}"} for number in range(len(result.seeds))]
    elif form == "png":
        data = [{"b64_json": text} for text in in_base64(job, job.result(0).pixels)]
    else:
        quality = 100 if asked.output_compression is None else asked.output_compression
        files = [compressed(job, image, number, form, quality) for number, image in enumerate(result.pixels)]
        data = [{"b64_json": base64.b64encode(file).decode()} for file in files]
    height, width = result.pixels.shape[1:3]
    return {
        "created": int(time.time()),
        "output_format": form,
        "size": f"{width}x{height}",
        "data": [{**image, "seed": seed} for image, seed in zip(data, result.seeds, strict=True)],
    }
