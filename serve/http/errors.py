"""Answer errors: a status, and a body that the clients of other servers read too."""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse

from ldmrt.runtime.errors import LdmrtError, NotFinite
from ldmrt.serve.batching.dispatcher import Stopping
from ldmrt.serve.jobs.job import Cancelled, DeadlinePassed, Stopped
from ldmrt.serve.jobs.service import Busy
from ldmrt.serve.jobs.serving import Unavailable

log = logging.getLogger("ldmrt.serve")


class NotFound(LdmrtError):
    """There is no such thing here."""


class TooLarge(LdmrtError):
    """A body has more bytes than the server takes."""


class TooSlow(LdmrtError):
    """A body takes longer to come than the server waits."""


class Overloaded(LdmrtError):
    """The server holds as many bytes of callers as it may."""


class NoKey(LdmrtError):
    """A caller has no API key that the server knows."""


class TooManyOfKey(LdmrtError):
    """As many requests of one API key wait or run as may."""


class TooManyStreams(LdmrtError):
    """As many streams of events are open as may be."""


# The status of the first class that an error belongs to.
STATUS: tuple[tuple[type[LdmrtError], HTTPStatus], ...] = (
    (NotFound, HTTPStatus.NOT_FOUND),
    (TooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (TooSlow, HTTPStatus.REQUEST_TIMEOUT),
    (Overloaded, HTTPStatus.TOO_MANY_REQUESTS),
    (NoKey, HTTPStatus.UNAUTHORIZED),
    (TooManyOfKey, HTTPStatus.TOO_MANY_REQUESTS),
    (TooManyStreams, HTTPStatus.TOO_MANY_REQUESTS),
    (Busy, HTTPStatus.TOO_MANY_REQUESTS),
    (Stopping, HTTPStatus.SERVICE_UNAVAILABLE),
    (Stopped, HTTPStatus.SERVICE_UNAVAILABLE),
    (Unavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (DeadlinePassed, HTTPStatus.GATEWAY_TIMEOUT),
    (Cancelled, HTTPStatus.CONFLICT),
    (NotFinite, HTTPStatus.INTERNAL_SERVER_ERROR),
    (LdmrtError, HTTPStatus.UNPROCESSABLE_ENTITY),
)

AGAIN = 1  # seconds after which to come back where nothing is measured

# The errors that routes answer, for the schema.
Answers = dict[int | str, dict[str, Any]]
SEEN: Answers = {
    HTTPStatus.UNAUTHORIZED.value: {"description": "No API key that the server knows."},
    HTTPStatus.NOT_FOUND.value: {"description": "There is no such thing, or it is another key's."},
}
WATCHED: Answers = {
    **SEEN,
    HTTPStatus.TOO_MANY_REQUESTS.value: {"description": "Too many streams: again after `Retry-After` seconds."},
}
DRAWN: Answers = {
    HTTPStatus.BAD_REQUEST.value: {"description": "The body cannot be read."},
    HTTPStatus.UNAUTHORIZED.value: SEEN[HTTPStatus.UNAUTHORIZED.value],
    HTTPStatus.REQUEST_TIMEOUT.value: {"description": "The body took too long to come."},
    HTTPStatus.CONFLICT.value: {"description": "The request was cancelled."},
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE.value: {"description": "The body or an image in it is too large."},
    HTTPStatus.UNPROCESSABLE_ENTITY.value: {"description": "The request can never run."},
    HTTPStatus.TOO_MANY_REQUESTS.value: {"description": "Too many requests wait: again after `Retry-After` seconds."},
    HTTPStatus.SERVICE_UNAVAILABLE.value: {"description": "The server is being stopped."},
    HTTPStatus.GATEWAY_TIMEOUT.value: {"description": "The request's deadline has passed."},
}


def status_of(error: BaseException) -> HTTPStatus:
    """Return the status that answers an error."""
    return next((status for kind, status in STATUS if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)


def public_message(error: BaseException) -> str:
    """Return what a caller is told of an error: nothing of what is inside the server."""
    return str(error) if isinstance(error, LdmrtError) else "an error of the server, which its log has"


def body_of(status: int, message: str, kind: str) -> dict[str, object]:
    """Return the body of an error: `error` as OpenAI's clients read it, and `detail` as AUTOMATIC1111's do."""
    return {"error": {"message": message, "type": kind, "param": None, "code": status}, "detail": message}


def answer(error: LdmrtError) -> JSONResponse:
    """Return the response to an error of a caller, or of the service."""
    status = status_of(error)
    again = error.retry_after if isinstance(error, Busy) else AGAIN
    headers = {"Retry-After": str(again)} if status == HTTPStatus.TOO_MANY_REQUESTS else {}
    kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    return JSONResponse(body_of(status, str(error), kind), status, headers=headers)


def add_error_handlers(app: FastAPI) -> None:
    """Let an application answer errors as this module does; a bug is logged, and its answer says no more than that."""

    @app.exception_handler(LdmrtError)
    async def of_ldmrt(http: HTTPRequest, error: LdmrtError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(HTTPException)
    async def of_routing(http: HTTPRequest, error: HTTPException) -> JSONResponse:
        body = body_of(error.status_code, str(error.detail), "invalid_request_error")
        return JSONResponse(body, error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def of_bodies(http: HTTPRequest, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        message = f"{where}: {first['msg']}"
        status = HTTPStatus.UNPROCESSABLE_ENTITY
        return JSONResponse(body_of(status, message, "invalid_request_error"), status)

    @app.exception_handler(Exception)
    async def of_bugs(http: HTTPRequest, error: Exception) -> JSONResponse:
        log.error("%s %s failed", http.method, http.url.path, exc_info=error)
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        return JSONResponse(body_of(status, public_message(error), "server_error"), status)
