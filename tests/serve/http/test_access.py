"""Callers need a key where the server has some, and bodies are bounded in their size and their time."""

import base64
import contextlib
import hashlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import webuiapi

from ldmrt.runtime import LdmrtError
from ldmrt.serve.http import running as connections
from ldmrt.serve.http.access import credentials, read_keys
from ldmrt.serve.http.state import Limits

from .conftest import Held, Running

A, B = (hashlib.sha256(key).hexdigest() for key in (b"key a", b"key b"))
FAST = {"prompt": "a pear", "num_inference_steps": 1}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def keyed(pipeline: object) -> Iterator[Running]:
    server = Running(pipeline, Limits(per_key=1), {A: "a", B: "b"}, rows=2)  # type: ignore[arg-type]
    yield server
    server.stop()


def basic(text: bytes) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(text).decode()}"}


@pytest.mark.parametrize(
    "headers",
    [
        {}, bearer("key c"), {"Authorization": "Bearer"}, {"Authorization": "key a"}, bearer(A), basic(b"a:key c"),
        basic(b"b:key a"), basic(b":key a"), basic(b"key a"), basic(b"a:"), basic(b"a:\xff"), basic(b"a:" + A.encode()),
        {"Authorization": "Basic"}, {"Authorization": "Basic a:key a"}, {"Authorization": "Basic YTprZXkgYQ"},
    ],
)  # fmt: skip
def test_callers_without_a_key_are_refused(keyed: Running, headers: dict[str, str]) -> None:
    with keyed.client(headers=headers) as client:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
            assert client.get(path).status_code == 401
        answer = client.post("/v1/requests", json=FAST)
        assert (answer.status_code, "no valid API key" in answer.json()["detail"]) == (401, True)
        assert [client.get(path).status_code for path in ("/healthz", "/readyz")] == [200, 200]


def test_a_name_and_its_key_as_a_password(keyed: Running) -> None:
    """As AUTOMATIC1111's clients log in; the requests are the key's, however it was sent."""
    for kind in ("Basic", "basic"):
        with keyed.client(headers={"Authorization": f"{kind} YTprZXkgYQ=="}) as client:  # a:key a
            assert client.get("/v1/models").status_code == 200
    api = webuiapi.WebUIApi(baseurl=f"{keyed.url}/sdapi/v1", username="a", password="key a")
    assert [model["title"] for model in api.get_sd_models()] == ["tiny"]
    assert len(api.txt2img(prompt="a pear", steps=1, width=16, height=16).images) == 1
    assert credentials("Basic " + base64.b64encode("Zoë:a:b ".encode()).decode()) == ("Zoë", "a:b ")


def test_requests_of_another_key_are_not_there(keyed: Running) -> None:
    with keyed.client() as client:
        name = client.post("/v1/requests", json=FAST, headers=bearer("key a")).json()["id"]
        keyed.service_job(name).result(60)
        for path in (f"/v1/requests/{name}", f"/v1/requests/{name}/images/0", f"/v1/requests/{name}/events"):
            assert client.get(path, headers=bearer("key b")).status_code == 404
            assert client.get(path, headers=bearer("key a")).status_code == 200
        assert client.delete(f"/v1/requests/{name}", headers=bearer("key b")).status_code == 404


def test_a_key_has_as_many_requests_as_it_may(keyed: Running) -> None:
    """Others' requests do not count; a place is free when a request has ended, has been cancelled or was invalid."""
    held = Held(keyed.service)
    with keyed.client() as client:
        invalid = client.post("/v1/requests", json={**FAST, "scheduler": "nonsense"}, headers=bearer("key a"))
        name = client.post("/v1/requests", json=FAST, headers=bearer("key a")).json()["id"]
        refused = client.post("/v1/requests", json=FAST, headers=bearer("key a"))
        other = client.post("/v1/requests", json=FAST, headers=bearer("key b"))
        assert [answer.status_code for answer in (invalid, refused, other)] == [422, 429, 202]
        assert int(refused.headers["Retry-After"]) >= 1
        client.delete(f"/v1/requests/{name}", headers=bearer("key a"))
        assert client.post("/v1/requests", json=FAST, headers=bearer("key a")).status_code == 202
        held.let_go()
        for job in keyed.server.jobs.of("a") + keyed.server.jobs.of("b"):
            job.result(60)
    assert keyed.server.places.held == 0


def test_keys_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the office\n\na {A.upper()}  # old\nb {B}\n")
    assert read_keys(file) == {A: "a", B: "b"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no keys"),
        ("# nothing", "has no keys"),
        ("a", ":1 is no key"),
        (f"a {A} b", ":1 is no key"),
        ("\na secret", ":2 is no key"),
        (f"a {A[:-1]}g", ":1 is no key"),
        (f"a {A}\nb {A.upper()}", ":2 has a key that stands there already"),
    ],
)
def test_files_that_are_not_of_keys(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(LdmrtError, match=re.escape(says)):
        read_keys(file)
    with pytest.raises(LdmrtError, match="--keys"):
        read_keys(tmp_path / "other")


def sent(server: Running, *parts: bytes) -> bytes:
    """Send bytes as they are, and read the answer until the server closes or has said all."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 30) as connection:
        with contextlib.suppress(OSError):  # it may have been refused before it was read
            for part in parts:
                connection.sendall(part)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


HEAD = b"POST /v1/requests HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def test_bodies_that_are_too_large(own_server: Callable[..., Running]) -> None:
    """Refused by their length before they are read, or else where they exceed the limit; neither is held."""
    server = own_server(limits=Limits(body=1000))
    for body in (b"x" * 1001, b"x" * (100 << 20)):
        with server.client() as client:
            answer = client.post("/v1/requests", content=body)
        assert answer.status_code == 413
    answer = sent(server, CHUNKED, *[b"1f4\r\n" + b" " * 500 + b"\r\n"] * 3)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"the body is too large; expected at most 1000 bytes" in answer
    assert sent(server, CHUNKED, *[b"1f4\r\n" + b" " * 500 + b"\r\n"] * 2, b"0\r\n\r\n").startswith(b"HTTP/1.1 422 ")
    assert server.server.bodies.held == 0


def test_bodies_that_never_end(own_server: Callable[..., Running]) -> None:
    server = own_server(limits=Limits(body_seconds=0.1))
    answer = sent(server, HEAD + b"Content-Length: 10\r\n\r\n123")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the body takes too long; expected at most 0.1 s" in answer
    assert server.server.bodies.held == 0


def test_connections_on_which_nothing_goes_on(
    own_server: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are closed: one that says nothing, and one whose header does not end."""
    monkeypatch.setattr(connections, "IDLE", 0.1)
    server = own_server()
    assert sent(server) == b""
    assert sent(server, b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: ") == b""


def test_answers_that_nobody_reads(own_server: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "IDLE", 0.1)
    server = own_server()
    closed = threading.Event()
    lost = connections.Connection.connection_lost

    def noted(self: connections.Connection, error: Exception | None) -> None:
        lost(self, error)
        closed.set()

    monkeypatch.setattr(connections.Connection, "connection_lost", noted)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        with contextlib.suppress(OSError):
            for _ in range(2000):  # more answers than the buffers of both sides hold
                connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n")
                if closed.is_set():
                    break
        assert closed.wait(30)


def test_bodies_are_held_up_to_a_size_in_all(own_server: Callable[..., Running]) -> None:
    server = own_server(limits=Limits(held=1000))
    assert server.server.bodies.take("", 900)  # of others
    with server.client() as client:
        answer = client.post("/v1/requests", content=b" " * 200)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
        server.server.bodies.give_back("", 900)
        assert client.post("/v1/requests", json=FAST).status_code == 202


def test_head_is_get_without_a_body(client: httpx.Client) -> None:
    answer = client.head("/healthz")
    assert (answer.status_code, answer.content) == (200, b"")
