"""Let in callers with an API key, and bodies up to a size."""

import hashlib
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import read_bytes
from ldmrt.serve.page.files import PATHS

from .errors import NoKey, TooLarge, answer
from .state import Server

OPEN = ("/healthz", "/readyz", *PATHS)  # paths that need no key
HEX_DIGITS = 64  # of a SHA-256


def digest(key: str) -> str:
    """Return an API key's SHA-256 in hexadecimal digits."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: Path) -> dict[str, str]:
    """Read a file of API keys: a line `NAME SHA256` for each, empty lines, and comments behind #.

    Returns:
        The name of each key by its SHA-256.

    Raises:
        LdmrtError: The file cannot be read, a line has another form, or a key stands there twice.
    """
    keys = dict[str, str]()
    text = read_bytes("--keys", path).decode(errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or len(words[1]) != HEX_DIGITS or not set(words[1].lower()) <= set("0123456789abcdef"):
            hint = "printf %s KEY | sha256sum"
            raise LdmrtError("--keys", f"{path}:{number} is no key", expected="NAME SHA256", hint=hint)
        if words[1].lower() in keys:
            raise LdmrtError("--keys", f"{path}:{number} has a key that stands there already")
        keys[words[1].lower()] = words[0]
    if not keys:
        raise LdmrtError("--keys", f"{path} has no keys", expected="a line NAME SHA256 for each")
    return keys


class Access:
    """Refuses callers without a key that the server knows, and bodies that are too large, before they are read."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        """Take the application, and the server whose keys and limits hold."""
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, most = Headers(scope=scope), self._server.limits.body
        refused: LdmrtError | None = None
        if self._server.keys and scope["path"] not in OPEN:
            owner = self._server.keys.get(digest(headers.get("authorization", "").removeprefix("Bearer ").strip()))
            if owner is None:
                refused = NoKey("request", "no valid API key", hint="Authorization: Bearer KEY")
            scope.setdefault("state", {})["owner"] = owner or ""
        length = headers.get("content-length", "0")
        if refused is None and length.isdecimal() and int(length) > most:
            refused = too_large(most)
        if refused is not None:
            await answer(refused)(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            """Receive a part of the body; one that is longer than it says ends here."""
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise too_large(most)
            return message

        await self._app(scope, counted, send)


def too_large(most: int) -> TooLarge:
    """Return the error for a body of more bytes than are allowed."""
    return TooLarge("request", "the body is too large", expected=f"at most {most} bytes")
