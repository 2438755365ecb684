"""Let in callers with an API key, and bodies up to a size."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import time
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import read_bytes
from ldmrt.serve.jobs.budget import Budget
from ldmrt.serve.page import reference
from ldmrt.serve.page.files import PATHS

from .errors import AGAIN, NoKey, Overloaded, TooLarge, TooSlow, answer
from .state import Server

OPEN = ("/healthz", "/readyz", reference.PATH, *PATHS)  # paths that need no key
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


def credentials(header: str) -> tuple[str | None, str | None]:
    """Return the name and the key that a header Authorization has, None for what it lacks: `Bearer` has no name.

    `Basic` has both, the key as its password (RFC 7617): so AUTOMATIC1111's clients log in.
    """
    kind, _, value = header.partition(" ")
    if kind.lower() == "bearer":
        return None, value.strip()
    if kind.lower() == "basic":
        with contextlib.suppress(ValueError):  # of base64, and of UTF-8
            name, colon, key = base64.b64decode(value.strip(), validate=True).decode().partition(":")
            return (name, key) if colon else (None, None)
    return None, None


class Access:
    """Refuses callers without a key that the server knows; reads bodies, as large and as slow as they may be."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        """Take the application, and the server whose keys and limits hold."""
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held = Held(self._server.bodies)
        try:
            owner = self._owner(scope)
            body = await self._body(scope, receive, held)
        except LdmrtError as error:
            await answer(error)(scope, receive, send)
        else:
            if body is not None:
                method = "GET" if scope["method"] == "HEAD" else scope["method"]  # the protocol leaves its body out
                state = {**scope.get("state", {}), "owner": owner}
                await self._app({**scope, "method": method, "state": state}, replayed(body, receive), send)
        finally:
            held.give_back()

    def _owner(self, scope: Scope) -> str:
        """Return the name of a caller's key; "" where none is asked for."""
        if not self._server.keys or scope["path"] in OPEN:
            return ""
        name, key = credentials(Headers(scope=scope).get("authorization", ""))
        owner = None if key is None else self._server.keys.get(digest(key))
        if owner is None or (name is not None and not hmac.compare_digest(name.encode(), owner.encode())):
            raise NoKey("request", "no valid API key", hint="Authorization: Bearer KEY, or NAME and KEY as Basic")
        return owner

    async def _body(self, scope: Scope, receive: Receive, held: "Held") -> bytes | None:
        """Read a body to its end; None where the caller hangs up before."""
        limits, parts = self._server.limits, list[bytes]()
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length) > limits.body:
            raise too_large(limits.body)
        until = time.monotonic() + limits.body_seconds
        while True:
            try:
                message = await asyncio.wait_for(receive(), until - time.monotonic())
            except asyncio.TimeoutError:
                problem = "the body takes too long"
                raise TooSlow("request", problem, expected=f"at most {limits.body_seconds:g} s") from None
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            if held.size + len(part) > limits.body:
                raise too_large(limits.body)
            if not held.take(len(part)):
                raise Overloaded("request", "the server holds too many bodies", hint=f"again in {AGAIN} s")
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)


class Held:
    """Counts the bytes of one body."""

    def __init__(self, budget: Budget) -> None:
        """Begin without any; they are of this budget."""
        self._budget, self.size = budget, 0

    def take(self, size: int) -> bool:
        """Count bytes, or return False if there is no room for them."""
        if not self._budget.take("", size):
            return False
        self.size += size
        return True

    def give_back(self) -> None:
        """Count them as no longer held."""
        self._budget.give_back("", self.size)
        self.size = 0


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return what gives a body that was read, and then what comes after it: that the caller hangs up."""
    bodies = [body]

    async def replay() -> Message:
        return {"type": "http.request", "body": bodies.pop(), "more_body": False} if bodies else await receive()

    return replay


def too_large(most: int) -> TooLarge:
    """Return the error for a body of more bytes than are allowed."""
    return TooLarge("request", "the body is too large", expected=f"at most {most} bytes")
