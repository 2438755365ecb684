"""Run a server until it is stopped by a signal."""

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator
from threading import Event, Thread
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ldmrt.runtime.errors import LdmrtError

from .app import application
from .state import Server
from .submitting import ASKED_EVERY

BACKLOG = 2048  # connections that the system keeps until they are taken
IDLE = 30  # seconds that a connection may be without a request; where nothing goes on it is closed within twice that
LAST_ANSWERS = 5  # seconds to send the answers to requests that have ended or were given up


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Listen on an address; 0 is a free port.

    Raises:
        LdmrtError: The address cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise LdmrtError("--host", f"no address {host!r:.100}", found=error.strerror) from None
    with opened:
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
            opened.listen(BACKLOG)
        except OSError as error:
            hint = "another --port; 0 takes a free one"
            raise LdmrtError("--port", f"cannot listen on {host}:{port}", found=error.strerror, hint=hint) from None
        yield opened


def run(server: Server, opened: socket.socket, grace: float, reload: Callable[[], object] = lambda: None) -> None:
    """Answer requests until SIGTERM or Ctrl-C; those that were accepted then have so many seconds to end.

    SIGHUP, where the system has it, calls `reload` in a thread of its own; one call ends before the next begins.
    """
    with reloading(reload):
        Stoppable(configured(server), server, grace).run([opened])


@contextlib.contextmanager
def reloading(reload: Callable[[], object]) -> Iterator[None]:
    """Call a function after SIGHUP, in a thread of its own, as long as the block runs.

    Signals that come while it runs call it once more.
    """
    if not hasattr(signal, "SIGHUP"):
        yield
        return
    asked, over = Event(), Event()

    def work() -> None:
        while asked.wait() and not over.is_set():
            asked.clear()
            reload()

    thread = Thread(target=work, name="reload", daemon=True)
    thread.start()
    before = signal.signal(signal.SIGHUP, lambda number, frame: asked.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
        over.set()
        asked.set()
        thread.join()


def configured(server: Server) -> uvicorn.Config:
    """Return how a server is run."""
    return uvicorn.Config(
        application(server),
        http=Connection,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=LAST_ANSWERS,
        server_header=False,
        backlog=BACKLOG,
    )


class Connection(H11Protocol):
    """Closes a connection on which nothing goes on: no whole request comes, or an answer is not read.

    It looks from time to time whether anything has changed; uvicorn itself only limits the time between two requests.
    """

    _looks: asyncio.TimerHandle | None = None
    _seen: tuple[object, int] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to look."""
        super().connection_made(transport)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Look no more."""
        if self._looks is not None:
            self._looks.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        """Close the connection if it is as it was, and it is the caller who is waited for."""
        unread = self.transport.get_write_buffer_size()
        between = self.cycle is None or self.cycle.response_complete
        state = self.cycle, unread
        if state == self._seen and (between or unread):
            self.transport.abort()
            return
        self._seen = state
        self._looks = self.loop.call_later(IDLE, self._look)


class Stoppable(uvicorn.Server):
    """A server whose service takes no more requests from the moment that it is to stop, and ends what it has."""

    def __init__(self, config: uvicorn.Config, server: Server, grace: float) -> None:
        """Take the configuration, the server whose service is stopped, and the seconds that its requests then have."""
        super().__init__(config)
        self._server, self._grace = server, grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at the first signal, and at once at the second."""
        self.force_exit = self.force_exit or self.should_exit
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests by 503, wait for those that were accepted, and give up what is left after the grace."""
        service = self._server.service
        service.stop()
        until = time.monotonic() + self._grace
        while (service.waiting or service.running) and time.monotonic() < until and not self.force_exit:
            await asyncio.sleep(ASKED_EVERY)
        service.give_up()
        self._server.previews.close()
        await super().shutdown(sockets)
