"""On a Ray cluster of two nodes: images are those of one machine, whatever is killed."""

import contextlib
import io
import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime import Request
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.samplers.loop import State
from ldmrt.serve.jobs.job import Cancelled, Job

from ..conftest import until
from .conftest import ray_processes

pytestmark = pytest.mark.slow(minutes=4)
PAGE = Path(__file__).parents[3] / "docs" / "serving" / "ray.md"
LONG, UNDER_LOAD = 400, 200  # steps
LINES = ['{"prompt": "a fox"}', '{"prompt": 5}', "", '{"prompt": "a pear", "count": 2}', "{", *(
    json.dumps({"prompt": f"an owl, number {number}"}) for number in range(60))]  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Iterator[Pipeline]:
    with open_pipeline(bundle) as opened:
        yield opened


def named(title: str) -> set[int]:
    """The processes of the cluster whose title begins so."""
    found = set()
    for pid in ray_processes():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_text().startswith(title):
                found.add(pid)
    return found


def options_on_page(command: str) -> list[str]:
    """The options of a command as docs/serving/ray.md has them."""
    (line,) = re.findall(rf"^    ldmrt {command} .*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return shlex.split(line[line.index("--ray") :])


class Draws:
    """`ldmrt batch --ray` in a process of its own, on the cluster."""

    def __init__(self, cluster: Any, bundle: Path, folder: Path) -> None:
        self.prompts, self.out = folder / "prompts.jsonl", folder / "out"
        self.prompts.write_text("\n".join(LINES))
        self._words = [sys.executable, "-m", "ldmrt", "batch", str(bundle), str(self.prompts)]
        self._options = ["--steps", "60", "--seed", "5", "--threads", "1"]
        self._environment = {**os.environ, "RAY_ADDRESS": cluster.address}

    def start(self, out: Path, *options: str) -> "subprocess.Popen[str]":
        words = [*self._words, str(out), *self._options, *options]
        return subprocess.Popen(words, env=self._environment, stderr=subprocess.PIPE, text=True)

    def on_ray(self) -> "subprocess.Popen[str]":
        return self.start(self.out, *options_on_page("batch"))

    def alone(self) -> dict[str, bytes]:
        """The files of a run without Ray."""
        process = self.start(self.out.with_name("alone"))
        assert (process.communicate()[1], process.returncode)[1] == 1  # two lines fail
        return files_in(self.out.with_name("alone"))

    def lines(self) -> int:
        index = self.out / "index.jsonl"
        return index.read_bytes().count(b"\n") if index.exists() else 0


def files_in(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_batch_whose_actor_and_whose_driver_are_killed(cluster: Any, bundle: Path, tmp_path: Path) -> None:
    """No line twice and none lost: all files are those of a run on one machine that was never killed."""
    draws = Draws(cluster, bundle, tmp_path)
    process = draws.on_ray()
    until(lambda: draws.lines() > 3 or process.poll() is not None)
    assert process.poll() is None, process.stderr and process.stderr.read()
    os.kill(random.choice(sorted(named("ray::MapWorker"))), signal.SIGKILL)
    killed_at = draws.lines()
    until(lambda: draws.lines() > killed_at + 4 or process.poll() is not None)
    assert process.poll() is None, "it has ended before it was killed"
    process.kill()
    process.communicate()
    before = draws.lines()
    assert killed_at < before < len(LINES)
    process = draws.on_ray()
    errors = process.communicate()[1]
    assert process.returncode == 1, errors
    assert f"{before} of them before" in errors
    assert files_in(draws.out) == draws.alone()
    until(lambda: not named("ray::MapWorker"))


class Deployed:
    """Two models on two replicas, each of which keeps one of them."""

    def __init__(self, bundle: Path) -> None:
        from ldmrt.serve.http.metrics import Metrics
        from ldmrt.serve.ray.deploying import Deployment
        from ldmrt.serve.ray.scale import Scale

        self._opened = contextlib.ExitStack()
        bundles = {"tiny": str(bundle), "other": str(bundle)}
        deployment = Deployment(bundles, Scale.read("2"), 8, {"threads": 1})
        self.metrics = Metrics()
        models = self._opened.enter_context(deployment.opened())
        handle = self._opened.enter_context(deployment.deployed())
        self.title = f"ray::ServeReplica:{handle.app_name}:replica"  # of its processes
        self.service = deployment.service(models, handle, 64, self.metrics)
        self._opened.enter_context(contextlib.closing(self.service))

    def close(self) -> None:
        self._opened.close()


@pytest.fixture(scope="module")
def url(cluster: Any) -> str:
    """Where Ray Serve answers."""
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    return f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def deployed(url: str, bundle: Path) -> Iterator[Deployed]:
    made = Deployed(bundle)
    yield made
    made.close()


def request(number: int, steps: int = 4) -> Request:
    return Request("a red apple", seed=number, num_inference_steps=steps)


def test_images_are_those_of_one_machine(deployed: Deployed, pipeline: Pipeline) -> None:
    jobs = [deployed.service.submit(request(number), ("tiny", "other")[number % 2]) for number in range(8)]
    for job in jobs:
        np.testing.assert_array_equal(job.result(60).pixels, pipeline.generate(job.request).pixels)
        assert (job.stage, job.called) == ("done", 4)
    assert b'ldmrt_requests_total{model="other",stage="done"} 4.0' in deployed.metrics.text()
    assert deployed.metrics.registry.get_sample_value("ldmrt_rows_total", {"model": "tiny"}) is not None


def test_there_is_a_replica_on_each_node(deployed: Deployed) -> None:
    stats = [Path(f"/proc/{pid}/stat").read_text() for pid in named(deployed.title)]
    assert len({stat.rpartition(")")[2].split()[1] for stat in stats}) == len(stats) == 2, "of two raylets"


def test_previews_are_those_of_one_machine(deployed: Deployed, pipeline: Pipeline) -> None:
    previews = list[Any]()

    def watcher(job: Job, state: State | None) -> None:
        if state is not None:
            previews.append(deployed.service.decode(job, state.x0[:1], state.stage)[0])

    deployed.service.submit(request(3), watcher=watcher).result(60)
    right = [pipeline.decode(state.x0[:1], state.stage)[0] for state in pipeline.steps(request(3))]
    np.testing.assert_array_equal(np.stack(previews), np.stack(right)[..., :3])


def test_a_cancelled_request_ends(deployed: Deployed) -> None:
    begun = threading.Event()
    job = deployed.service.submit(request(0, LONG), watcher=lambda job, state: begun.set() if state else None)
    assert begun.wait(60)
    deployed.service.cancel(job)
    with pytest.raises(Cancelled):
        job.result(60)
    assert job.called < LONG


def test_a_replica_killed_under_load(deployed: Deployed, pipeline: Pipeline) -> None:
    """`kill -9` under 16 requests: each of them is answered, by the same bytes."""
    right = [pipeline.generate(request(number, UNDER_LOAD)).pixels for number in range(16)]
    again, rows, last = set[str](), Counter[str](), dict[str, int]()

    def watcher(job: Job, state: State | None) -> None:
        if state is not None:
            rows[job.model] += 1
            if state.row < last.get(job.id, -1):
                again.add(job.id)
            last[job.id] = state.row

    jobs = [
        deployed.service.submit(request(number, UNDER_LOAD), ("tiny", "other")[number % 2], watcher=watcher)
        for number in range(16)
    ]
    until(lambda: min(rows["tiny"], rows["other"]) > 8)
    # No replica has both models in memory, so now each draws those of one.
    assert len({job.model for job in jobs if not job.ended}) == 2
    os.kill(random.choice(sorted(named(deployed.title))), signal.SIGKILL)
    for number, job in enumerate(jobs):
        np.testing.assert_array_equal(job.result(120).pixels, right[number])
        assert job.called == UNDER_LOAD
    assert again, "none was on the replica that was killed"
    until(lambda: deployed.service.waiting == deployed.service.running == 0)


@pytest.fixture(scope="module")
def built(url: str, bundle: Path) -> Iterator[httpx.Client]:
    """What `serve run ldmrt.serve.ray:app bundles=...` deploys, in the place of `deployed`."""
    from ray import serve

    from ldmrt.serve.ray import app
    from ldmrt.serve.ray.builder import Arguments

    (line,) = re.findall(r"^    serve run ldmrt.serve.ray:app (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    arguments = dict(word.split("=", 1) for word in line.split())
    assert arguments == {"bundles": "out/emoji64", "replicas": "1-4"}
    arguments |= {"bundles": f"tiny={bundle}", "cpus": "0", "rows": "8", "threads": "1"}
    serve.run(app(Arguments.model_validate(arguments)), name="built")
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client
    serve.delete("built")


def test_the_application_answers(built: httpx.Client, pipeline: Pipeline) -> None:
    """By OpenAI's API, and by ldmrt's own row by row; errors too."""
    asked = {"prompt": "a red apple", "seed": 3, "num_inference_steps": 4}
    accepted = built.post("/v1/requests", json=asked).json()
    with built.stream("GET", f"/v1/requests/{accepted['id']}/events") as events:
        told = [json.loads(line[6:]) for line in events.iter_lines() if line.startswith("data: ")]
    assert told[-1]["stage"] == "done"
    image = built.get(told[-1]["images"][0])
    assert built.post("/v1/images/generations", json=asked).json()["data"][0]["seed"] == 3
    with Image.open(io.BytesIO(image.content)) as opened:
        np.testing.assert_array_equal(np.asarray(opened), pipeline.generate(request(3)).pixels[0])
    assert built.post("/v1/images/generations", json={"prompt": "a", "nonsense": 1}).status_code == 422
    assert built.get("/v1/models").json()["data"][0]["loaded"] is None


def test_a_caller_of_the_application_who_hangs_up(built: httpx.Client) -> None:
    """What it has asked for ends, which would take a minute."""
    with pytest.raises(httpx.ReadTimeout):
        built.post("/v1/images/generations", json={"prompt": "a", "n": 16, "num_inference_steps": 500}, timeout=1)
    until(lambda: 'ldmrt_requests_total{model="tiny",stage="cancelled"} 1.0' in built.get("/metrics").text)


@pytest.mark.usefixtures("default_signals")  # the process that is started here inherits them
def test_the_command_joins_the_cluster_and_leaves_it(cluster: Any, url: str, bundle: Path) -> None:
    from ray import serve

    before = set(serve.status().applications)  # which are beside this one, and stay
    words = [sys.executable, "-m", "ldmrt", "serve", f"tiny={bundle}", "--port", "0", "--rows", "8"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200", "RAY_ADDRESS": cluster.address}
    words += [*options_on_page("serve"), "--cpus", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            own = next(line.strip() for line in process.stderr if line.startswith("http://"))
            answer = httpx.post(f"{own}/v1/images/generations", json={"prompt": "a pear"}, timeout=60)
            assert answer.status_code == 200, answer.text
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
            assert process.returncode == 128 + signal.SIGTERM
        finally:
            process.kill()
    assert set(serve.status().applications) == before
