"""Tell whether the server lives, takes requests, and how busy it is."""

from http import HTTPStatus

from fastapi import APIRouter
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, PlainTextResponse

from .state import server_of

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Answer as long as the server lives."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(http: HTTPRequest) -> JSONResponse:
    """Tell whether the server takes requests: 503 where it is being stopped."""
    stopping = server_of(http).service.closed
    status = HTTPStatus.SERVICE_UNAVAILABLE if stopping else HTTPStatus.OK
    return JSONResponse({"status": "stopping" if stopping else "ready"}, status)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(http: HTTPRequest) -> PlainTextResponse:
    """Return the server's figures in Prometheus' text format."""
    return PlainTextResponse(server_of(http).metrics.text(), media_type="text/plain; version=0.0.4")
