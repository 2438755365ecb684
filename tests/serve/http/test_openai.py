"""OpenAI's images API, as the `openai` client speaks it."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from ldmrt.runtime import Request
from ldmrt.runtime.bundle.certificate import Certificate, TensorError
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.serve.http.state import Limits
from ldmrt.tools.console.drawing.embedded.fields import read_fields

from .conftest import Running

FEW = {"num_inference_steps": 2, "scheduler": "ddim"}


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)))


def decoded(answer: Any) -> list[np.ndarray]:
    return [pixels(base64.b64decode(image.b64_json)) for image in answer.data]


def file_of(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def picture() -> bytes:
    """An image of the tiny model's size."""
    return file_of(Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)))


def test_generations_are_the_pipelines_images(client: openai.OpenAI, pipeline: Pipeline) -> None:
    answer = client.images.generate(prompt="a pear", n=2, size="32x16", extra_body={**FEW, "seed": 7})
    right = pipeline.generate(Request("a pear", num_images_per_prompt=2, width=32, height=16, seed=7, **FEW)).pixels
    np.testing.assert_array_equal(decoded(answer), right)
    assert answer.data is not None
    assert [image.model_extra for image in answer.data] == [{"seed": 7}, {"seed": 8}]
    assert (answer.size, answer.output_format) == ("32x16", "png")


def test_urls_lead_to_the_same_images(client: openai.OpenAI, pipeline: Pipeline) -> None:
    answer = client.images.generate(prompt="a pear", response_format="url", size="auto", extra_body=FEW)
    assert answer.data is not None
    image = httpx.get(str(answer.data[0].url)).content
    np.testing.assert_array_equal(pixels(image), pipeline.generate(Request("a pear", **FEW)).pixels[0])
    assert json.loads(Image.open(io.BytesIO(image)).info["ldmrt"])["prompt"] == "a pear"


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_other_formats(client: openai.OpenAI, pipeline: Pipeline, form: Any) -> None:
    answers = [
        client.images.generate(prompt="a pear", output_format=form, output_compression=quality, extra_body=FEW)
        for quality in (100, 1)
    ]
    assert [answer.output_format for answer in answers] == [form, form]
    fine, coarse = (decoded(answer)[0].astype(float) for answer in answers)
    right = pipeline.generate(Request("a pear", **FEW)).pixels[0]
    assert np.abs(fine - right).mean() < np.abs(coarse - right).mean()


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_other_formats_say_how_they_were_made(client: openai.OpenAI, tmp_path: Path, form: Any) -> None:
    for prompt, kept in (("a pear", True), ("\N{PEAR}" * 9000, form == "webp")):  # in all 72 KB, more than a JPEG holds
        answer = client.images.generate(prompt=prompt, output_format=form, extra_body=FEW)
        assert answer.data is not None
        path = tmp_path / f"image.{form}"
        path.write_bytes(base64.b64decode(str(answer.data[0].b64_json)))
        fields = read_fields("test", path)
        assert ("ldmrt" in fields, "parameters" in fields) == (kept, kept)
        if kept:
            assert json.loads(fields["ldmrt"])["prompt"] == prompt
            assert fields["parameters"].startswith(prompt.strip())


@pytest.mark.parametrize("masked", [True, False])
def test_edits_are_the_pipelines_images(
    client: openai.OpenAI, pipeline: Pipeline, picture: bytes, masked: bool
) -> None:
    hole = np.full((16, 16, 4), 255, np.uint8)
    hole[4:12, 4:12, 3] = 0
    mask = {"mask": ("mask.png", file_of(Image.fromarray(hole)))} if masked else {}
    answer = client.images.edit(
        image=("image.png", picture), prompt="a pear", n=2, **mask, extra_body={**FEW, "seed": 7, "strength": 0.5}
    )
    white = {"mask_image": 255 - hole[..., 3]} if masked else {}
    image = Image.open(io.BytesIO(picture))
    request = Request("a pear", image=image, num_images_per_prompt=2, seed=7, strength=0.5, **FEW, **white)
    np.testing.assert_array_equal(decoded(answer), pipeline.generate(request).pixels)


def test_an_image_in_a_list_is_that_image(client: openai.OpenAI, picture: bytes) -> None:
    single, listed = (client.images.edit(image=image, prompt="a", extra_body=FEW) for image in (picture, [picture]))
    np.testing.assert_array_equal(decoded(single), decoded(listed))


def test_models(client: openai.OpenAI, pipeline: Pipeline) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    model = client.models.retrieve("tiny")
    assert (model.id, model.owned_by, (model.model_extra or {})["size"]) == ("tiny", "ldmrt", pipeline.stage.size)
    with pytest.raises(openai.NotFoundError, match="no model 'nonsense'"):
        client.models.retrieve("nonsense")


def test_the_certificate_of_a_model(pipeline: Pipeline) -> None:
    """The list has its verdict, and the model itself all of it; what is not a number is one of JSON's strings."""
    error = TensorError("unet", "onnxruntime", "plain", "out_sample", float("nan"), 0.5, float("nan"), 0.5, 1e-4)
    certificate = Certificate((error,), (), (), {"bundle": {"unet/model.onnx": "ab"}})
    server = Running(replace(pipeline, certificate=certificate))
    try:
        with server.client() as http:
            verdict = http.get("/v1/models").json()["data"][0]["certificate"]
            whole = http.get("/v1/models/tiny").json()["certificate"]
    finally:
        server.stop()
    assert verdict == {"within": False, "failures": certificate.failures}
    assert whole.pop("failures") == certificate.failures
    assert Certificate.from_json(whole).to_json() == certificate.to_json()


def test_fields_that_are_not_heeded(client: openai.OpenAI) -> None:
    plain = client.images.generate(prompt="a", extra_body=FEW)
    told = client.images.generate(
        prompt="a", quality="high", moderation="low", user="me", style="vivid", safety_identifier="me",
        complexity="low", background="opaque", stream=False, partial_images=0, model="tiny", extra_body=FEW,
    )  # fmt: skip
    np.testing.assert_array_equal(decoded(plain), decoded(told))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prompt": "a", "background": "transparent"}, "background: unsupported; expected auto or opaque"),
        ({"prompt": "a", "partial_images": 2}, "partial_images: unsupported"),
        ({"prompt": "a", "output_format": "svg"}, "output_format"),
        ({"prompt": "a", "output_format": "webp", "response_format": "url"}, "only PNG has a url"),
        ({"prompt": "a", "size": "large"}, "size: no size"),
        ({"prompt": "a", "n": 0}, "n: "),
        ({"prompt": "a", "model": "tinny"}, "no model 'tinny', did you mean 'tiny'?"),
        ({"prompt": "a", "extra_body": {"num_inference_step": 3}}, "num_inference_step: Extra inputs"),
        ({"prompt": "a", "extra_body": {"scheduler": "nonsense"}}, "unknown scheduler"),
    ],
)
def test_generations_that_are_refused(client: openai.OpenAI, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.images.generate(**fields)
    assert says in refused.value.message
    assert (refused.value.status_code, refused.value.type) == (422, "invalid_request_error")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"image": [b"a", b"b"]}, "image: several images; expected one image"),
        ({"image": b"nonsense"}, "cannot read image"),
        ({"mask": file_of(Image.new("RGB", (16, 16)))}, "mask: no transparency"),
        ({"input_fidelity": "high"}, "input_fidelity: unsupported"),
        ({"markup": b"nonsense"}, "markup: unsupported"),
        ({"extra_body": {"sead": 3}}, "sead: Extra inputs"),
        ({"extra_body": {"seed": "many"}}, "seed: Input should be a valid integer"),
    ],
)
def test_edits_that_are_refused(client: openai.OpenAI, picture: bytes, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.images.edit(**{"image": picture, "prompt": "a", **fields})
    assert says in refused.value.message


def test_an_edit_without_an_image(running: Running) -> None:
    answer = httpx.post(f"{running.url}/v1/images/edits", data={"prompt": "a"})
    assert (answer.status_code, answer.json()["detail"]) == (422, "image: is missing; expected a file of the form")


def test_too_many_requests_are_tried_again(pipeline: Pipeline) -> None:
    """One request of a key may wait or run: the client's second fails, or is tried again until there is room."""
    server = Running(pipeline, Limits(per_key=1))
    tries = list[int]()
    transport = openai.DefaultHttpxClient(event_hooks={"response": [lambda got: tries.append(got.status_code)]})
    try:
        with server.client() as own:
            name = own.post("/v1/requests", json={"prompt": "a", "num_inference_steps": 500}).json()["id"]
            job, may_go_on = server.server.jobs.get(name), threading.Event()
            assert job is not None
            job.watch(lambda job, state: may_go_on.wait(30))
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=transport, max_retries=0)
            with pytest.raises(openai.RateLimitError, match="too many requests of this key wait or run"):
                client.images.generate(prompt="a", extra_body=FEW)
            assert tries == [429]
            with pytest.raises(openai.RateLimitError):
                client.with_options(max_retries=1).images.generate(prompt="a", extra_body=FEW)
            assert tries == [429, 429, 429]
            may_go_on.set()
            own.delete(f"/v1/requests/{name}")
            assert client.with_options(max_retries=10).images.generate(prompt="a", extra_body=FEW).data
    finally:
        transport.close()
        server.stop()


def test_keys(pipeline: Pipeline) -> None:
    from ldmrt.serve.http.access import digest

    server = Running(pipeline, keys={digest("right"): "me"})
    try:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="right", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["tiny"]
            with pytest.raises(openai.AuthenticationError, match="no valid API key"):
                client.with_options(api_key="wrong").models.list()
    finally:
        server.stop()
