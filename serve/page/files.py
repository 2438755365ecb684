"""Serve the files of the page."""

import hashlib
from dataclasses import dataclass
from http import HTTPStatus
from importlib.resources import files

from fastapi import APIRouter
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Scripts, styles and requests are the server's own; images may also be those that the page holds in memory.
POLICY = "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; object-src 'none'; frame-ancestors 'none'"
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a browser asks each time, and is answered by 304 as long as nothing has changed
}


@dataclass(frozen=True)
class File:
    """Holds a file of the page: its content, its type, and the tag by which a browser knows it again."""

    content: bytes
    type: str
    tag: str


def load() -> dict[str, File]:
    """Return the files of the page by the path that each is served under."""
    found = dict[str, File]()
    for entry in files(__package__).joinpath("static").iterdir():
        suffix = "." + entry.name.rpartition(".")[2]
        if suffix in TYPES:
            content = entry.read_bytes()
            path = "/" if entry.name == "index.html" else f"/page/{entry.name}"
            found[path] = File(content, TYPES[suffix], f'"{hashlib.sha256(content).hexdigest()[:16]}"')
    return found


FILES = load()  # nothing else is served, whatever a path says
PATHS = tuple(FILES)  # which need no API key: the page asks for it
router = APIRouter(include_in_schema=False)


async def send(http: HTTPRequest) -> Response:
    """Return a file of the page, or say that the browser's copy is still right."""
    file = FILES[http.url.path]
    headers = {**HEADERS, "ETag": file.tag}
    if file.tag in http.headers.get("if-none-match", ""):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(file.content, media_type=file.type, headers=headers)


for path in PATHS:
    router.add_api_route(path, send, methods=["GET", "HEAD"])
