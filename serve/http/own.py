"""Serve ldmrt's own API: a request is accepted at once, and told of row by row."""

import asyncio
import base64
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from functools import partial
from http import HTTPStatus
from typing import Any, Literal

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ldmrt.runtime.samplers.loop import State
from ldmrt.serve.jobs.job import Job
from ldmrt.serve.jobs.previews import decoded

from .bodies import Drawing
from .errors import AGAIN, DRAWN, SEEN, WATCHED, NotFound, TooManyStreams, body_of, public_message, status_of
from .images import encoded
from .state import Server, server_of
from .submitting import submit

router = APIRouter(prefix="/v1/requests", tags=["ldmrt"])
PNG: dict[str, Any] = {"content": {"image/png": {}}}
STREAM: dict[str, Any] = {"content": {"text/event-stream": {}}}
MOVED = 1.0  # seconds between two looks at the position of a request that waits
KEPT_ALIVE = 10.0  # seconds without an event after which a comment is sent, so that proxies keep the connection
UNREAD = 64  # events that wait for a slow reader, who misses older ones
Kind = Literal["stage", "row", "preview"]


def found(http: HTTPRequest, name: str) -> Job:
    """Return the caller's job of a name; a `NotFound` says that there is none."""
    job = server_of(http).jobs.get(name)
    if job is None or job.owner != getattr(http.state, "owner", ""):
        raise NotFound("request", "no such request, or it ended too long ago")
    return job


def described(server: Server, job: Job) -> dict[str, Any]:
    """Return what there is to say of a job."""
    said: dict[str, Any] = {
        "id": job.id,
        "model": job.model,
        "stage": job.stage,
        "position": server.service.position(job),
        "row": job.called,
        "rows": job.calls,
    }
    if job.stage == "done":
        result = job.result(0)
        paths = [f"/v1/requests/{job.id}/images/{number}" for number in range(len(result.seeds))]
        said |= {"seeds": result.seeds, "seconds": result.seconds, "images": paths}
        if result.nsfw_content_detected is not None:
            said["nsfw_content_detected"] = result.nsfw_content_detected
    if job.error is not None:
        said |= body_of(status_of(job.error), public_message(job.error), "request_error")
    return said


@router.post("", status_code=HTTPStatus.ACCEPTED, responses=DRAWN)
async def create(http: HTTPRequest, drawing: Drawing) -> dict[str, Any]:
    """Accept a request; its images are drawn when there is room."""
    job = await submit(http, drawing.request, drawing.model, seconds=drawing.timeout)
    return described(server_of(http), job)


@router.get("/{name}", responses=SEEN)
async def show(http: HTTPRequest, name: str) -> dict[str, Any]:
    """Tell how far a request is."""
    return described(server_of(http), found(http, name))


@router.delete("/{name}", responses=SEEN)
async def cancel(http: HTTPRequest, name: str) -> dict[str, Any]:
    """Give a request up; one that runs ends after its row."""
    server, job = server_of(http), found(http, name)
    server.service.cancel(job)
    return described(server, job)


@router.get("/{name}/images/{number}", response_class=Response, responses={**SEEN, 200: PNG})
async def image(http: HTTPRequest, name: str, number: int) -> Response:
    """Return an image of a request as PNG, with the parameters that make it again."""
    job = found(http, name)
    if job.stage != "done" or not 0 <= number < len(job.result(0).seeds):
        raise NotFound("request", "no such image", found=job.stage)
    return Response(await run_in_threadpool(encoded, job, number), media_type="image/png")


@router.get("/{name}/events", response_class=StreamingResponse, responses={**WATCHED, 200: STREAM})
async def events(http: HTTPRequest, name: str, preview: bool | Literal["all"] = False) -> StreamingResponse:
    """Stream server-sent events: `stage` where the request waits, runs or has ended, `row` after each row.

    With `preview=true` there is also a `preview` when the first image that a row predicts is decoded: the number of
    the row, and the PNG in base64; with `preview=all` it has `previews`, those of all images. A row whose next one has
    ended before it was decoded has none.
    """
    server, job = server_of(http), found(http, name)
    place = contextlib.ExitStack()
    budgets = (server.streams_per_request, job.id), (server.streams_per_key, job.owner), (server.streams, "")
    for budget, owner in budgets:
        if not budget.take(owner, 1):
            place.close()
            raise TooManyStreams("request", "too many streams of events are open", hint=f"again in {AGAIN} s")
        place.callback(budget.give_back, owner, 1)
    images = 0 if preview is False else job.request.total_images if preview == "all" else 1
    return Stream(streamed(server, job, images, every=preview == "all"), place.close)


class Stream(StreamingResponse):
    """Streams events, and gives its place back however it ends."""

    def __init__(self, content: AsyncIterator[str], ended: Callable[[], object]) -> None:
        """Take the events, and what is called at the end."""
        super().__init__(content, media_type="text/event-stream")
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


async def streamed(server: Server, job: Job, images: int, *, every: bool) -> AsyncIterator[str]:
    """Yield the events of a job until it has ended or the reader hangs up.

    Args:
        server: The server.
        job: The job.
        images: How many of the images that a row predicts are shown.
        every: Whether they are a list.
    """
    loop, unread = asyncio.get_running_loop(), Unread()

    def tell(kind: Kind, said: dict[str, Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(unread.put, kind, said)

    def show(row: int, files: Future[list[bytes]]) -> None:
        if shown := [base64.b64encode(file).decode() for file in decoded(files, job)]:
            tell("preview", {"id": job.id, "row": row, **({"previews": shown} if every else {"preview": shown[0]})})

    def watcher(job: Job, state: State | None) -> None:
        tell("stage" if state is None else "row", described(server, job))
        if state is not None and images:
            server.previews.of(job, state, images).add_done_callback(partial(show, job.called))

    last = described(server, job)
    yield event("stage", last)
    job.watch(watcher)
    try:
        while True:
            try:
                wait = MOVED if job.stage == "waiting" else KEPT_ALIVE
                kind, said = await asyncio.wait_for(unread.next(), wait)
            except asyncio.TimeoutError:
                now = described(server, job)
                moved = now["stage"] == "waiting" and now["position"] != last["position"]
                last = now
                yield event("stage", now) if moved else ": waiting\n\n"
                continue
            yield event(kind, said)
            if kind == "stage" and said["stage"] in ("done", "failed", "cancelled"):
                return
    finally:
        job.unwatch(watcher)


class Unread:
    """Holds the events that wait for a slow reader, in their order: the last ones, and of previews the last one."""

    def __init__(self) -> None:
        """Begin without events."""
        self._events, self._there = deque[tuple[Kind, dict[str, Any]]](maxlen=UNREAD), asyncio.Event()

    def put(self, kind: Kind, said: dict[str, Any]) -> None:
        """Add an event."""
        if kind == "preview":
            self._events = deque((one for one in self._events if one[0] != "preview"), UNREAD)
        self._events.append((kind, said))
        self._there.set()

    async def next(self) -> tuple[Kind, dict[str, Any]]:
        """Wait for an event, and take it."""
        while not self._events:
            self._there.clear()
            await self._there.wait()
        return self._events.popleft()


def event(kind: Kind, said: dict[str, Any]) -> str:
    """Return a server-sent event."""
    return f"event: {kind}\ndata: {json.dumps(said)}\n\n"
