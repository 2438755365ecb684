"""ldmrt's own API: a request is accepted, told of row by row, and its images can be fetched."""

import asyncio
import base64
import contextlib
import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime import Request
from ldmrt.runtime.images.png import encode_png
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.serve.http.access import digest
from ldmrt.serve.http.bodies import Drawing
from ldmrt.serve.http.own import UNREAD, Kind, Unread
from ldmrt.serve.http.state import Limits

from ..conftest import until
from .conftest import Held, Running


def events(client: httpx.Client, name: str, **query: Any) -> list[tuple[str, dict[str, Any]]]:
    """Read all events of a request."""
    with client.stream("GET", f"/v1/requests/{name}/events", params=query) as response:
        lines = [line for line in response.iter_lines() if line and not line.startswith(":")]
    kinds, data = lines[::2], lines[1::2]
    return [
        (kind.removeprefix("event: "), json.loads(one.removeprefix("data: ")))
        for kind, one in zip(kinds, data, strict=True)
    ]


def test_a_request_from_its_acceptance_to_its_images(client: httpx.Client, pipeline: Pipeline) -> None:
    body = {"prompt": "two pears", "num_inference_steps": 4, "seed": 7, "num_images_per_prompt": 2, "scheduler": "ddim"}
    accepted = client.post("/v1/requests", json=body)
    assert accepted.status_code == 202
    name = accepted.json()["id"]
    told = events(client, name)
    assert told[-1][0] == "stage"
    done = told[-1][1]
    assert (done["stage"], done["row"], done["rows"], done["seeds"]) == ("done", 4, 4, [7, 8])
    right = pipeline.generate(Request(**body)).pixels
    for number, path in enumerate(done["images"]):
        image = Image.open(io.BytesIO(client.get(path).content))
        np.testing.assert_array_equal(np.asarray(image), right[number])
        saved = json.loads(image.info["ldmrt"])
        assert [saved[word] for word in ("prompt", "seed", "steps", "scheduler")] == [
            "two pears",
            7 + number,
            4,
            "ddim",
        ]
        text = image.info["parameters"]
        assert text.startswith(f"two pears\nSteps: 4, Sampler: DDIM, Seed: {7 + number}, Size: 16x16, Model: ")
    assert client.get(f"/v1/requests/{name}").json()["stage"] == "done"
    assert client.get(f"/v1/requests/{name}/images/2").status_code == 404


def test_noise_is_whose_the_request_names(client: httpx.Client, pipeline: Pipeline) -> None:
    body: dict[str, Any] = {"prompt": "two pears", "num_inference_steps": 2, "seed": 7, "noise": "torch-cpu"}
    told = events(client, client.post("/v1/requests", json=body).json()["id"])
    image = Image.open(io.BytesIO(client.get(told[-1][1]["images"][0]).content))
    np.testing.assert_array_equal(np.asarray(image), pipeline.generate(Request(**body)).pixels[0])
    assert json.loads(image.info["ldmrt"])["noise"] == "torch-cpu"
    refused = client.post("/v1/requests", json={**body, "noise": "torch"})
    assert (refused.status_code, "ldmrt, torch-cpu, torch-cuda, a1111" in refused.text) == (422, True)


def test_previews_are_images(client: httpx.Client, pipeline: Pipeline) -> None:
    import base64

    name = client.post("/v1/requests", json={"prompt": "a pear", "num_inference_steps": 30}).json()["id"]
    told = events(client, name, preview=True)
    rows = [one["row"] for kind, one in told if kind == "row"]
    assert rows == list(range(rows[0], 31))  # in their order, to the last; a reader who comes late misses the first
    previews = [one["preview"] for kind, one in told if kind == "preview"]
    assert previews  # how many rows ran before the reader came, or before one was decoded, is the machine's affair
    side = pipeline.stage.size
    assert Image.open(io.BytesIO(base64.b64decode(previews[-1]))).size == (side, side)


def test_previews_of_all_images(client: httpx.Client) -> None:
    body = {"prompt": "a pear", "num_inference_steps": 30, "num_images_per_prompt": 3}
    name = client.post("/v1/requests", json=body).json()["id"]
    previews = [one["previews"] for kind, one in events(client, name, preview="all") if kind == "preview"]
    assert {len(images) for images in previews} == {3}
    assert len(set(previews[-1])) == 3
    assert client.get(f"/v1/requests/{name}/events", params={"preview": "some"}).status_code == 422


def test_a_slow_reader_misses_old_events_and_all_previews_but_the_last() -> None:
    unread = Unread()
    for row in range(UNREAD):
        unread.put("row", {"row": row})
        unread.put("preview", {"row": row})
    unread.put("stage", {"stage": "done"})

    async def taken() -> list[tuple[Kind, dict[str, Any]]]:
        return [await unread.next() for _ in range(UNREAD)]

    kept = asyncio.run(taken())
    assert kept[-1] == ("stage", {"stage": "done"})
    assert [said["row"] for kind, said in kept if kind == "preview"] == [UNREAD - 1]
    rows = [said["row"] for kind, said in kept if kind == "row"]
    assert rows == list(range(UNREAD - len(rows), UNREAD))


def test_streams_are_bounded(own_server: Callable[..., Running]) -> None:
    """As many for each request as may be, and as many in all; a reader who leaves makes room."""
    server = own_server(limits=Limits(streams=3, streams_per_request=2))
    held = [Held(server.service) for _ in range(2)]
    for one in held:
        server.server.jobs.add(one.job)
    first, second = (f"/v1/requests/{one.job.id}/events" for one in held)
    with server.client() as client, contextlib.ExitStack() as open_:
        streams = [open_.enter_context(client.stream("GET", path)) for path in (first, first, second)]
        assert [stream.status_code for stream in streams] == [200] * 3
        for path in (first, second):
            refused = client.get(path)
            assert refused.status_code == 429
            assert int(refused.headers["Retry-After"]) >= 1
        streams[0].close()
        until(lambda: server.server.streams.held == 2)
        with client.stream("GET", second) as stream:
            assert stream.status_code == 200
        for one in held:
            one.let_go()
            one.job.result(60)
    until(lambda: not server.server.streams.held and not server.server.streams_per_request.held)


def test_one_key_leaves_streams_to_others(own_server: Callable[..., Running]) -> None:
    keys = {digest("one"): "one", digest("two"): "two"}
    server = own_server(limits=Limits(streams_per_key=1), keys=keys)
    held = {owner: Held(server.service, owner=owner) for owner in ("one", "two")}
    for one in held.values():
        server.server.jobs.add(one.job)

    def opened(client: httpx.Client, owner: str) -> Any:
        headers = {"Authorization": f"Bearer {owner}"}
        return client.stream("GET", f"/v1/requests/{held[owner].job.id}/events", headers=headers)

    with server.client() as client, opened(client, "one") as first:
        with opened(client, "one") as second, opened(client, "two") as others:
            assert [stream.status_code for stream in (first, second, others)] == [200, 429, 200]
        for one in held.values():
            one.let_go()
            one.job.result(60)


def test_a_request_that_waits_is_told_when_it_moves_up(own_server: Callable[..., Running]) -> None:
    server = own_server(rows=2)
    held = Held(server.service)
    with server.client() as client:
        bodies = [{"prompt": "a", "seed": seed, "num_inference_steps": 2} for seed in range(3)]
        names = [client.post("/v1/requests", json=body).json()["id"] for body in bodies]
        with client.stream("GET", f"/v1/requests/{names[2]}/events") as stream:
            told = (
                json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line.startswith("data: ")
            )
            positions = [next(told)["position"]]
            for name in names[:2]:
                client.delete(f"/v1/requests/{name}")
                positions.append(next(told)["position"])
            held.let_go()
            assert [one["stage"] for one in told][-1] == "done"
    assert positions == [2, 1, 0]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"prompt": "a", "sheduler": "ddim"}, "sheduler: Extra inputs are not permitted"),
        ({"prompt": "a", "scheduler": "nonsense"}, "unknown scheduler 'nonsense'"),
        ({"prompt": "a", "num_inference_steps": 0}, "num_inference_steps"),
        ({"prompt": "a", "num_inference_steps": 501}, "too many steps; expected at most 500; found 501"),
        ({"prompt": "a" * 10_001}, "too many characters of a prompt"),
        ({"prompt": "a AND " * 16 + "a", "prompt_syntax": "a1111"}, "too many parts of a prompt"),
        ({"prompt": "a", "num_images_per_prompt": 17}, "too many images"),
        ({"prompt": "a", "width": 8192, "height": 8192}, "too many pixels"),
        ({"prompt": "a", "image": "/etc/passwd"}, "no image in base64"),
        ({"prompt": "a", "image": "aGVsbG8="}, "cannot read image"),
        ({"prompt": "a", "model": "nonsense"}, "no model 'nonsense'"),
        ([], "body"),
    ],
)
def test_invalid_requests_are_refused(client: httpx.Client, body: object, says: str) -> None:
    answer = client.post("/v1/requests", json=body)
    assert answer.status_code == 422
    assert says in answer.json()["error"]["message"]
    assert answer.json()["detail"] == answer.json()["error"]["message"]


def test_a_request_that_is_not_there(client: httpx.Client) -> None:
    for call in (client.get, client.delete):
        answer = call("/v1/requests/nonsense")
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error")


def test_a_cancelled_request(client: httpx.Client) -> None:
    name = client.post("/v1/requests", json={"prompt": "a pear", "num_inference_steps": 500}).json()["id"]
    assert client.delete(f"/v1/requests/{name}").status_code == 200
    ended = events(client, name)[-1][1]
    assert (ended["stage"], ended["error"]["message"]) == ("cancelled", "request: cancelled by its caller")
    assert ended["row"] < 500


def test_a_body_may_hold_the_image_of_an_ip_adapter() -> None:
    image = encode_png(np.zeros((3, 5, 3), np.uint8))
    body = {
        "prompt": "two pears",
        "ip_adapter_image": base64.b64encode(image).decode(),
        "ip_adapter_scale": {"up": 0.5},
    }
    request = Drawing.model_validate(body).request()
    assert (request.ip_adapter_image.size, request.ip_adapter_scale) == ((5, 3), {"up": 0.5})
