"""The page's files are sent as they are, with what keeps a browser safe; samplers are listed with their plans."""

import dataclasses
from pathlib import Path

import httpx
import numpy as np
import pytest

import ldmrt.serve.page
from ldmrt.runtime import Request
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.samplers.registry import plan_from_config
from ldmrt.serve.page.files import PATHS
from ldmrt.serve.page.samplers import described

STATIC = Path(ldmrt.serve.page.__file__).parent / "static"
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def test_every_file_is_sent(client: httpx.Client) -> None:
    there = {"/" if path.name == "index.html" else f"/page/{path.name}": path for path in STATIC.iterdir()}
    assert set(PATHS) == there.keys()
    for path, file in there.items():
        answer = client.get(path)
        assert (answer.status_code, answer.content) == (200, file.read_bytes())
        assert answer.headers["Content-Type"].startswith(TYPES[file.suffix[1:]])
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'self'; img-src 'self' data: blob:" in answer.headers["Content-Security-Policy"]
        again = client.get(path, headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert client.get(path, headers={"If-None-Match": '"another"'}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/page/", "/page/../app.py", "/page/%2e%2e/files.py", "/page/..%2ffiles.py", "/page/index.html"]
)
def test_nothing_else_is_sent(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_the_page_fetches_nothing_from_elsewhere() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in STATIC.iterdir())
    assert text.replace("http://www.w3.org/2000/svg", "").count("://") == 0


def test_samplers_and_the_plan_of_one(client: httpx.Client, pipeline: Pipeline) -> None:
    answer = client.get("/v1/samplers", params={"name": "dpmpp_2m_karras", "steps": 7}).json()
    assert (answer["model"], answer["multiple"]) == ("tiny", pipeline.stage.space.factor)
    assert {"ddim", "euler", "dpmpp_2m_karras", answer["default"]} <= set(answer["samplers"])
    assert "score_ve" not in answer["samplers"]  # which is for networks of another equation
    plan = plan_from_config(pipeline.scheduler, 7, name="dpmpp_2m_karras")
    assert answer["plan"]["timesteps"] == plan.t.tolist()
    np.testing.assert_allclose(answer["plan"]["sigmas"], plan.sigma / plan.alpha, rtol=1e-12)
    for name in answer["samplers"]:
        assert pipeline.plan(Request("", scheduler=name)).rows


def test_pure_noise_has_no_level(pipeline: Pipeline) -> None:
    plan = plan_from_config(pipeline.scheduler, 3, name="ddim")
    alpha = plan.alpha.copy()
    alpha[0] = 0.0
    assert described(dataclasses.replace(plan, alpha=alpha))["sigmas"][0] is None


@pytest.mark.parametrize(
    ("asked", "says"),
    [({"model": "tinny"}, "did you mean 'tiny'"), ({"name": "ddin"}, "did you mean 'ddim'"), ({"steps": 0}, "steps")],
)
def test_samplers_that_are_not_there(client: httpx.Client, asked: dict[str, str], says: str) -> None:
    answer = client.get("/v1/samplers", params=asked)
    assert answer.status_code == 422
    assert says in answer.json()["error"]["message"]
