"""A server that is stopped refuses new requests, ends those that it has, and leaves with the signal's code."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from ldmrt.runtime.bundle.manifest import MANIFEST

from ..conftest import until
from .conftest import Held, Running


def test_a_server_that_is_stopped(own_server: Callable[..., Running]) -> None:
    """What runs is answered, what is new is refused, and `/readyz` says so meanwhile."""
    server = own_server(grace=60)
    held = Held(server.service)
    server.server.jobs.add(held.job)
    server.begin_to_stop()
    with server.client() as client:
        refused = client.post("/v1/images/generations", json={"prompt": "a"})
        assert (refused.status_code, "it is being stopped" in refused.text) == (503, True)
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()) == (503, {"status": "stopping"})
        assert client.get("/healthz").status_code == 200
        with client.stream("GET", f"/v1/requests/{held.job.id}/events") as events:
            held.let_go()
            assert '"stage": "done"' in list(events.iter_lines())[-2]
    server.stop()
    assert held.job.stage == "done"


def test_requests_that_have_not_ended_after_the_grace(own_server: Callable[..., Running]) -> None:
    server = own_server(grace=0, rows=2)
    held = Held(server.service)
    asked = server.asked()
    until(lambda: server.service.waiting)
    server.begin_to_stop()
    answer = asked.result(60)
    assert (answer.status_code, "the service was stopped" in answer.text) == (503, True)
    held.let_go()
    server.stop()
    assert held.job.stage == "cancelled"


@contextmanager
def command(bundle: Path, *options: str) -> Iterator[tuple["subprocess.Popen[str]", httpx.Client]]:
    """Run `ldmrt serve` in a process of its own until it is stopped."""
    words = [sys.executable, "-m", "ldmrt", "serve", f"tiny={bundle}", "--port", "0", "--rows", "8", *options]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            url = next(line.strip() for line in process.stderr if line.startswith("http://"))
            with httpx.Client(base_url=url, timeout=60) as client:
                yield process, client
        finally:
            process.kill()


@pytest.mark.slow(minutes=0.11)
@pytest.mark.usefixtures("default_signals")  # the process that is started here inherits them
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_stopped(bundle: Path, number: signal.Signals) -> None:
    """The request that runs is drawn, and the log has one line of it, without its prompt."""
    with command(bundle, "--log", "json") as (process, client):
        body = {"prompt": "two pears", "num_inference_steps": 300}
        name = client.post("/v1/requests", json=body).json()["id"]
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        line, *stopped = err.split()[:-1], err.split()[-1]
        logged = json.loads(" ".join(line))
        assert (logged["request"], logged["stage"], logged["calls"]) == (name, "done", 300)
        assert {"latents", "decode", "waiting", "total"} == set(logged["seconds"])
        assert stopped == ["stopped"]
        assert "pears" not in out + err


@pytest.mark.slow(minutes=0.05)
def test_a_command_that_is_stopped_twice_ends_at_once(bundle: Path) -> None:
    """The requests that run are given up though the grace has not passed."""
    with command(bundle, "--grace", "1000") as (process, client):
        body = {"prompt": "a", "num_inference_steps": 500, "num_images_per_prompt": 16}
        names = [client.post("/v1/requests", json=body).json()["id"] for _ in range(8)]
        process.send_signal(signal.SIGTERM)
        until(lambda: client.get("/readyz").status_code == 503)
        process.send_signal(signal.SIGTERM)
        err = process.communicate(timeout=60)[1]
        assert process.returncode == 128 + signal.SIGTERM
        assert f"request={names[-1]} model=tiny owner= stage=cancelled" in err
        assert "Traceback" not in err


@pytest.mark.usefixtures("default_signals")
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_command_that_reloads_its_bundle(bundle: Path, tmp_path: Path) -> None:
    """After SIGHUP later requests are drawn with the bundle as it is now; one that is damaged changes nothing."""
    folder, body = tmp_path / "bundle", {"prompt": "two pears", "num_inference_steps": 2}
    shutil.copytree(bundle, folder)
    with command(folder) as (process, client):
        assert process.stderr is not None
        manifest = (folder / MANIFEST).read_text()
        for text, told in (("{", "model tiny was not reloaded"), (manifest, "model tiny was reloaded")):
            (folder / MANIFEST).write_text(text)
            process.send_signal(signal.SIGHUP)
            assert told in next(line for line in process.stderr if "reloaded" in line)
            assert client.post("/v1/images/generations", json=body).status_code == 200
