"""Answer errors: a status, and a body that the clients of other servers read too."""

import logging
from http import HTTPStatus

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse

from ldmrt.runtime.errors import LdmrtError, NotFinite
from ldmrt.serve.batching.dispatcher import Stopping
from ldmrt.serve.jobs.job import Cancelled
from ldmrt.serve.jobs.service import Busy

log = logging.getLogger("ldmrt.serve")


class NotFound(LdmrtError):
    """There is no such thing here."""


class TooLarge(LdmrtError):
    """A body has more bytes than the server takes."""


class NoKey(LdmrtError):
    """A caller has no API key that the server knows."""


class TooManyOfKey(LdmrtError):
    """As many requests of one API key wait or run as may."""


# The status of the first class that an error belongs to.
STATUS: tuple[tuple[type[LdmrtError], HTTPStatus], ...] = (
    (NotFound, HTTPStatus.NOT_FOUND),
    (TooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (NoKey, HTTPStatus.UNAUTHORIZED),
    (TooManyOfKey, HTTPStatus.TOO_MANY_REQUESTS),
    (Busy, HTTPStatus.TOO_MANY_REQUESTS),
    (Stopping, HTTPStatus.SERVICE_UNAVAILABLE),
    (Cancelled, HTTPStatus.GATEWAY_TIMEOUT),
    (NotFinite, HTTPStatus.INTERNAL_SERVER_ERROR),
    (LdmrtError, HTTPStatus.UNPROCESSABLE_ENTITY),
)


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
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, Busy) else {}
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
