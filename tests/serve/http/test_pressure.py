"""More callers than there is room for: each is answered or told when to come back, and none leaves anything behind."""

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable

import httpx
import pytest

from ldmrt.serve.http.state import Limits

from ..conftest import until
from .conftest import Held, Running

WAITING = 4


def jobs_alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("job ")]


def test_a_burst_of_twenty_times_the_capacity(own_server: Callable[..., Running]) -> None:
    """While one request runs and fills the batch, as many others wait as may; all others are refused."""
    server = own_server(rows=2, waiting=WAITING)
    held, body = Held(server.service), {"prompt": "a pear", "num_inference_steps": 2}
    burst, answers = 20 * (WAITING + 1), list[httpx.Response]()

    async def ask(client: httpx.AsyncClient) -> None:
        answers.append(await client.post("/v1/images/generations", json=body))
        if len(answers) == burst - WAITING:
            held.let_go()

    async def ask_all() -> None:
        limits = httpx.Limits(max_connections=burst)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            await asyncio.gather(*[ask(client) for _ in range(burst)])

    asyncio.run(ask_all())
    assert Counter(answer.status_code for answer in answers) == {200: WAITING, 429: burst - WAITING}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers if answer.status_code == 429)
    held.job.result(60)
    assert (server.service.waiting, server.service.running) == (0, 0)


def hang_up(server: Running, callers: int) -> None:
    """Let callers ask for images at once, a few accepted at a time, and hang up before they are drawn."""
    body = {"prompt": "a pear", "num_inference_steps": 500}

    async def ask(client: httpx.AsyncClient, places: asyncio.Semaphore) -> None:
        async with places:
            with contextlib.suppress(httpx.TimeoutException):
                answer = await client.post("/v1/images/generations", json=body)
                assert answer.status_code == 429

    async def ask_all() -> None:
        limits = httpx.Limits(max_connections=32)
        async with httpx.AsyncClient(
            base_url=server.url, timeout=httpx.Timeout(60, read=0.15), limits=limits
        ) as client:
            places = asyncio.Semaphore(32)
            await asyncio.gather(*[ask(client, places) for _ in range(callers)])

    asyncio.run(ask_all())


@pytest.mark.parametrize("callers", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_callers_who_hang_up_leave_nothing_behind(own_server: Callable[..., Running], callers: int) -> None:
    server = own_server(limits=Limits(kept=16), waiting=16)
    hang_up(server, callers)
    until(lambda: not (server.service.waiting or server.service.running or server.server.bodies.held))
    given_up = [ended.job for ended in server.server.jobs._ended.values()]
    assert given_up
    assert {job.stage for job in given_up} == {"cancelled"}
    assert server.server.jobs.of("") == []
    assert [job._watchers for job in given_up if job._watchers] == []
    assert (server.server.images.held, server.server.places.held) == (0, 0)
    assert len(server.server.jobs) <= 16
    with server.client() as client:
        assert client.post("/v1/images/generations", json={"prompt": "a", "num_inference_steps": 1}).status_code == 200
    server.service.close()
    assert jobs_alive() == []


def test_readers_of_events_who_hang_up(own_server: Callable[..., Running]) -> None:
    """The request goes on, and nobody watches it but the server."""
    server = own_server()
    held = Held(server.service)
    server.server.jobs.add(held.job)
    before = len(held.job._watchers)
    with server.client() as client:
        for _ in range(3):
            with client.stream("GET", f"/v1/requests/{held.job.id}/events") as answer:
                assert next(answer.iter_lines()) == "event: stage"
    until(lambda: len(held.job._watchers) == before)
    held.let_go()
    assert held.job.result(60).seeds == [0]


def test_deadlines(own_server: Callable[..., Running]) -> None:
    """A request is answered when its deadline passes, though nothing else happens in the service."""
    server = own_server(limits=Limits(seconds=0.05), rows=2)
    held = Held(server.service)
    with server.client() as client:
        answer = client.post("/v1/images/generations", json={"prompt": "a"})
        assert (answer.status_code, answer.json()["detail"]) == (504, "request: its deadline has passed")
    held.let_go()


def test_a_request_that_is_cancelled_by_another_connection(own_server: Callable[..., Running]) -> None:
    server = own_server(rows=2)
    held = Held(server.service)
    answer = server.asked()
    until(lambda: server.server.jobs.of(""))
    (job,) = server.server.jobs.of("")
    with server.client() as client:
        assert client.delete(f"/v1/requests/{job.id}").json()["stage"] == "cancelled"
    assert answer.result(60).status_code == 409
    held.let_go()
