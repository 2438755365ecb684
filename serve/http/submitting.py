"""Hand a caller's request to the service, and wait for it without blocking other callers."""

import asyncio
import contextlib
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HTTPRequest

from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.loop import State
from ldmrt.serve.jobs.job import Job, Watcher

from .errors import TooManyOfKey
from .state import server_of

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
        asked = request()
        check_limits(http, asked)
        own = limits.seconds if seconds is None else min(seconds, limits.seconds)
        job = server.service.submit(asked, model, seconds=own, owner=owner, watcher=watcher)
        server.jobs.add(job)
        return job

    if limits.per_key and len(server.jobs.of(owner)) >= limits.per_key:
        problem = "too many requests of this key wait or run"
        raise TooManyOfKey("request", problem, expected=f"at most {limits.per_key}")
    return await run_in_threadpool(made)


def check_limits(http: HTTPRequest, request: Request) -> None:
    """Refuse a request that is larger than the server's limits."""
    limits = server_of(http).limits
    longest = max((len(prompt) for prompt in request.prompts if prompt), default=0)
    found = (
        ("characters of a prompt", longest, limits.prompt),
        ("images", request.total_images, limits.images),
        ("steps", request.num_inference_steps, limits.steps),
        ("pixels", (request.width or 0) * (request.height or 0) * request.total_images, limits.pixels),
    )
    for what, number, most in found:
        if number > most:
            raise InvalidRequest("request", f"too many {what}", expected=f"at most {most}", found=number)


async def ended(http: HTTPRequest, job: Job) -> None:
    """Wait until a job has ended; a caller who hangs up gives it up.

    Raises:
        LdmrtError: The job has failed, or was given up.
    """
    loop, over = asyncio.get_running_loop(), asyncio.Event()

    def watcher(job: Job, state: State | None) -> None:
        if job.ended:
            with contextlib.suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(over.set)

    job.watch(watcher)
    while not over.is_set():
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(over.wait(), ASKED_EVERY)
        if not over.is_set() and await http.is_disconnected():
            server_of(http).service.cancel(job)
            return
    job.result(0)
