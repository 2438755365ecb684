"""Hand a caller's request to the service, and wait for it without blocking other callers."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HTTPRequest

from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.pipeline.conditioning.composition import most_parts
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.loop import State
from ldmrt.serve.batching.room import check_fits
from ldmrt.serve.jobs.job import Cancelled, Job, Watcher, given_bytes
from ldmrt.serve.jobs.tracing import context_of

from .errors import AGAIN, Overloaded, TooManyOfKey
from .state import Server, server_of

if TYPE_CHECKING:
    from PIL.Image import Image

ASKED_EVERY = 0.1  # seconds between two looks whether the caller is still there


async def submit(
    http: HTTPRequest,
    request: Callable[[], Request],
    model: str | None = None,
    *,
    seconds: float | None = None,
    watcher: Watcher | None = None,
) -> Job:
    """Give a request to the service.

    Args:
        http: The caller's request.
        request: Makes the request; it is called in a thread, as it may decode images.
        model: The model's name; the first by default.
        seconds: When the caller no longer wants the images; the server's own limit if that is less.
        watcher: Called as `Job.watch` says.

    Raises:
        LdmrtError: The request is invalid, larger than the server's limits, or there is no room for it.
    """
    server, owner = server_of(http), str(getattr(http.state, "owner", ""))
    limits = server.limits

    def made() -> Job:
        server.service.check_room()  # this and the places of the key before images are decoded
        with contextlib.ExitStack() as held:
            if not server.places.take(owner, 1):
                problem = "too many requests of this key wait or run"
                raise TooManyOfKey("request", problem, expected=f"at most {limits.per_key}")
            held.callback(server.places.give_back, owner, 1)
            asked = request()
            check_limits(server, asked, model)
            size, own = given_bytes(asked), limits.seconds if seconds is None else min(seconds, limits.seconds)
            if not server.images.take("", size):
                raise Overloaded("request", "the server holds too many images", hint=f"again in {AGAIN} s")
            held.callback(server.images.give_back, "", size)
            trace = context_of(http.headers)
            job = server.service.submit(asked, model, seconds=own, owner=owner, watcher=watcher, trace=trace)
            server.jobs.add(job)
            ending = held.pop_all()
        job.watch(lambda job, state: ending.close() if job.ended else None)
        return job

    return await run_in_threadpool(made)


def check_limits(server: Server, request: Request, model: str | None) -> None:
    """Refuse a request that is larger than the server's limits, or than the memory, whatever waits."""
    limits, models = server.limits, server.service.models
    asked = [own.get("num_inference_steps", 0) for own in request.stages.values()]
    steps = [
        request.num_inference_steps,
        int((request.hires_steps or 0) * request.hires_strength),
        *(number for number in asked if isinstance(number, int)),
    ]
    refuse("images", request.total_images, limits.images)
    refuse("steps", max(steps), limits.steps)
    texts = (text for pair in [*request.texts, *request.negative_texts(zeros=False)] for text in pair)
    refuse("characters of a prompt", max((len(text or "") for text in texts), default=0), limits.prompt)
    refuse("parts of a prompt", most_parts(request), limits.parts)
    pipeline = next(iter(models.values())) if model is None else models.get(model)
    if pipeline is None:
        return  # the service says so
    height, width = pipeline.final_size(request)
    refuse("pixels", height * width * request.total_images, limits.pixels)
    if request.padding_mask_crop is not None:  # pasted over the whole image
        image = cast("Image", request.image)  # callers send no other
        refuse("pixels", image.width * image.height * request.total_images, limits.pixels)
    if request.outpaint is not None:
        image, (left, top, right, bottom) = cast("Image", request.image), request.outpaint
        pixels = (image.width + left + right) * (image.height + top + bottom)
        refuse("pixels", pixels * request.total_images, limits.pixels)
    check_fits(pipeline, request)


def refuse(what: str, number: int, most: int) -> None:
    """Refuse a number that is too large."""
    if number > most:
        raise InvalidRequest("request", f"too many {what}", expected=f"at most {most}", found=number)


async def ended(http: HTTPRequest, job: Job) -> None:
    """Wait until a job has ended; a caller who hangs up gives it up.

    Raises:
        Cancelled: The caller has hung up; nobody reads the answer.
        LdmrtError: The job has failed, or was given up.
    """
    loop, over = asyncio.get_running_loop(), asyncio.Event()

    def watcher(job: Job, state: State | None) -> None:
        if job.ended:
            with contextlib.suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(over.set)

    job.watch(watcher)
    try:
        while not over.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(over.wait(), ASKED_EVERY)
            if not over.is_set() and await http.is_disconnected():
                raise Cancelled("request", "its caller has hung up")
    finally:
        job.unwatch(watcher)
        if not job.ended:  # the caller has hung up, or the server ends
            server_of(http).service.cancel(job)
    job.result(0)
