"""Serve AUTOMATIC1111's txt2img, img2img, progress and interrupt: `modules/api/api.py` of its web UI, version 1.10."""

import asyncio
import base64
import contextlib
import time
from concurrent.futures import Future
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HTTPRequest

from ldmrt.runtime.samplers.loop import State
from ldmrt.serve.http.errors import DRAWN
from ldmrt.serve.http.state import Server, server_of
from ldmrt.serve.http.submitting import ended, submit
from ldmrt.serve.jobs.job import Job
from ldmrt.serve.jobs.previews import decoded

from . import lists
from .bodies import Drawing, ImageToImage, TextToImage
from .info import answered, stamped
from .options import MODEL, checked, of_caller
from .reader import Reader

router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"])
router.include_router(lists.router)
PREVIEW = 5.0  # seconds in which a row has to end whose preview is asked for


@router.post("/txt2img", responses=DRAWN)
async def txt2img(http: HTTPRequest, body: TextToImage) -> dict[str, Any]:
    """Draw images of a prompt."""
    return await drawn(http, body)


@router.post("/img2img", responses=DRAWN)
async def img2img(http: HTTPRequest, body: ImageToImage) -> dict[str, Any]:
    """Draw images from an image, or in the white of a mask."""
    return await drawn(http, body)


async def drawn(http: HTTPRequest, body: Drawing) -> dict[str, Any]:
    """Draw what a body asks for, with the caller's options."""
    server = server_of(http)
    own, given = of_caller(http), checked(server, body.override_settings or {})
    options = {**own, **given}
    reader = Reader.of(server.service.models[options[MODEL]].stage, options, server.styles, server.limits.prompt)
    job = await submit(http, lambda: body.request(reader), options[MODEL])
    if not body.override_settings_restore_afterwards:
        own.update(given)
    await ended(http, job)
    return await run_in_threadpool(answered, server, job, body, options)


def running(http: HTTPRequest) -> list[Job]:
    """Return the caller's jobs, those that run first."""
    owner = str(getattr(http.state, "owner", ""))
    return sorted(server_of(http).jobs.of(owner), key=lambda job: (job.stage != "running", job.accepted))


@router.get("/progress")
async def progress(http: HTTPRequest, skip_current_image: bool = False) -> dict[str, Any]:
    """Tell how far the caller's first request is that runs, or waits, with an image of what its next row predicts."""
    jobs = running(http)
    state: dict[str, Any] = {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": "",
        "job_count": len(jobs),
        "job_timestamp": "0",
        "job_no": 0,
        "sampling_step": 0,
        "sampling_steps": 0,
    }
    if not jobs:
        return {"progress": 0.0, "eta_relative": 0.0, "state": state, "current_image": None, "textinfo": None}
    job = jobs[0]
    image = None
    if job.stage == "running" and not skip_current_image:
        image = await preview(server_of(http), job)
    share = min(1.0, job.called / max(1, job.calls))
    spent = time.monotonic() - job.accepted - job.seconds.get("waiting", 0.0)
    state |= {"job": job.id, "job_timestamp": stamped(job), "sampling_step": job.called, "sampling_steps": job.calls}
    state["interrupted"] = job.given_up
    return {
        "progress": share,
        "eta_relative": spent / share - spent if share else float(server_of(http).service.seconds_left()),
        "state": state,
        "current_image": image,
        "textinfo": None if job.stage == "running" else "Waiting...",
    }


async def preview(server: Server, job: Job) -> str | None:
    """Return the image that a job's next row predicts, as PNG in base64; None where none ends in time."""
    loop, seen = asyncio.get_running_loop(), asyncio.Future[str | None]()

    def put(image: str | None) -> None:
        if not seen.done():
            seen.set_result(image)

    def show(files: Future[list[bytes]]) -> None:
        if images := decoded(files, job):
            tell(base64.b64encode(images[0]).decode())

    def tell(image: str | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(put, image)

    def watcher(job: Job, state: State | None) -> None:
        if state is not None and not seen.done():
            server.previews.of(job, state).add_done_callback(show)
        elif job.ended:
            tell(None)

    job.watch(watcher)
    try:
        return await asyncio.wait_for(seen, PREVIEW)
    except asyncio.TimeoutError:
        return None
    finally:
        job.unwatch(watcher)


@router.post("/interrupt")
async def interrupt(http: HTTPRequest) -> dict[str, Any]:
    """Give up the caller's requests that run, each after its row; their callers get an error and no half-made image."""
    stop(http)
    return {}


@router.post("/skip")
async def skip(http: HTTPRequest) -> None:
    """Give up the caller's requests that run: all images of a request are drawn together."""
    stop(http)


def stop(http: HTTPRequest) -> None:
    """Give up the caller's requests that run."""
    for job in running(http):
        if job.stage == "running":
            server_of(http).service.cancel(job)
