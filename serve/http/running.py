"""Run a server until it is stopped by a signal."""

import contextlib
import socket
from collections.abc import Iterator

import uvicorn

from ldmrt.runtime.errors import LdmrtError

from .app import application
from .state import Server

BACKLOG = 2048  # connections that the system keeps until they are taken
IDLE = 30  # seconds that a connection may be without a request


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


def run(server: Server, opened: socket.socket, grace: float) -> None:
    """Answer requests until SIGTERM or Ctrl-C; those that run then have so many seconds to end."""
    Stoppable(configured(server, grace), server).run([opened])


def configured(server: Server, grace: float) -> uvicorn.Config:
    """Return how a server is run, whose requests have so many seconds to end when it is stopped."""
    return uvicorn.Config(
        application(server),
        log_level="warning",
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=max(1, round(grace)),
        server_header=False,
        backlog=BACKLOG,
    )


class Stoppable(uvicorn.Server):
    """A server whose service takes no more requests from the moment that it is to stop."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        """Take the configuration, and the server whose service is stopped."""
        super().__init__(config)
        self._server = server

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests, and wait for those that were accepted."""
        self._server.service.stop()
        await super().shutdown(sockets)
