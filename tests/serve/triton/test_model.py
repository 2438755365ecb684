"""The model of the Python backend answers each request by itself, without waiting for it in `execute`.

Triton's server itself runs it in test_server.py; the stand-in for its module takes memory back as Triton does.
"""

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ldmrt.runtime import InvalidRequest, Request
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.runtime.samplers.loop import State
from ldmrt.serve.jobs.job import Job
from ldmrt.serve.triton.tensors import INPUTS, request_of

FINAL = 1


class Tensor:
    """A tensor in Triton's memory."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> np.ndarray:
        return self.array


class Sender:
    """Takes one response, and tells whether the caller is still there."""

    def __init__(self) -> None:
        self.sent, self.response, self.cancelled = Event(), None, False

    def send(self, response: Any, flags: int) -> None:
        assert flags == FINAL
        assert not self.sent.is_set(), "two responses"
        self.response = response
        self.sent.set()

    def is_cancelled(self) -> bool:
        return self.cancelled

    def answer(self) -> Any:
        assert self.sent.wait(60)
        return self.response


class Asked:
    """A request of Triton's."""

    def __init__(self, timeout: int = 0, **inputs: Any) -> None:
        self.tensors = {name: Tensor(name, np.array(value)) for name, value in inputs.items()}
        self.sender, self.microseconds = Sender(), timeout

    def get_response_sender(self) -> Sender:
        return self.sender

    def timeout(self) -> int:
        return self.microseconds

    def take_back(self) -> None:
        for tensor in self.tensors.values():
            tensor.array[...] = b"" if tensor.array.dtype == object else 0


class TritonError(Exception):
    INVALID_ARG, UNAVAILABLE, CANCELLED, INTERNAL = range(4)

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code


UTILS = SimpleNamespace(
    Tensor=Tensor,
    TritonError=TritonError,
    InferenceResponse=lambda tensors, error=None: SimpleNamespace(
        arrays={tensor.name: tensor.array for tensor in tensors}, error=error
    ),
    TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
    get_input_tensor_by_name=lambda request, name: request.tensors.get(name),
)


def text(*texts: str) -> np.ndarray:
    return np.array([one.encode() for one in texts], object)


@pytest.fixture
def model(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The model of the repository's own model.py, which is loaded."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", UTILS)  # type: ignore[arg-type]
    folder = repository / "ldmrt_tiny"
    made = runpy.run_path(str(folder / "1" / "model.py"))["TritonPythonModel"]()
    parameters = {"bundle": "bundle", "backend": "onnxruntime", "threads": "1", "rows": "8", "waiting": "2", "tile": ""}
    config = {
        "parameters": {name: {"string_value": value} for name, value in parameters.items()},
        "input": [{"name": tensor.name} for tensor in INPUTS],
    }
    made.initialize({"model_config": json.dumps(config), "model_name": "ldmrt_tiny"})
    yield made
    made.finalize()


def run(model: Any, *asked: Asked) -> None:
    """Hand over requests, and take their memory back when `execute` has returned, as Triton does."""
    assert model.execute(asked) == [None] * len(asked)
    for one in asked:
        one.take_back()


def test_an_image_is_not_read_from_memory_that_triton_has_taken_back(model: Any, bundle: Path) -> None:
    image = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(1, 16, 16, 3)
    asked = Asked(prompt=text("a pear"), image=image, strength=[0.5], num_inference_steps=[4])
    with open_pipeline(bundle, "onnxruntime") as pipeline:
        expected = pipeline.generate(Request("a pear", image=image, strength=0.5, num_inference_steps=4))
    run(model, asked)
    assert asked.sender.answer().arrays["images"].tobytes() == expected.pixels.tobytes()


def test_requests_of_one_call_get_the_images_of_the_pipeline(model: Any, bundle: Path) -> None:
    asked = [Asked(prompt=text("a pear"), seed=np.array([n], np.uint64), num_inference_steps=[n]) for n in (2, 5, 3)]
    bad = Asked(prompt=text("a pear"), num_inference_steps=[0])
    run(model, *asked[:2], bad, *asked[2:])
    with open_pipeline(bundle, "onnxruntime") as pipeline:
        for n, one in zip((2, 5, 3), asked, strict=True):
            answer = one.sender.answer()
            assert answer.error is None
            expected = pipeline.generate(Request("a pear", seed=n, num_inference_steps=n))
            assert answer.arrays["images"].tobytes() == expected.pixels.tobytes()
            assert (answer.arrays["seeds"].dtype, answer.arrays["seeds"].tolist()) == (np.uint64, [n])
    error = bad.sender.answer().error
    assert error.code == TritonError.INVALID_ARG
    assert "num_inference_steps" in error.message


class Holding:
    """Holds jobs of a service after their first row."""

    def __init__(self, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on, submit = Event(), Event(), service.submit

        def hold(job: Job, state: State | None) -> None:
            if state is not None:
                self.begun.set()
                assert self.go_on.wait(60)

        monkeypatch.setattr(service, "submit", lambda request, **how: submit(request, watcher=hold, **how))


def test_execute_does_not_wait_and_a_caller_who_cancels_is_told_so(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Holding(model._service, monkeypatch)
    first = Asked(prompt=text("a pear"), num_inference_steps=[50])
    run(model, first)  # returns, although no row goes on
    assert held.begun.wait(60)
    assert not first.sender.sent.is_set()
    first.sender.cancelled = True
    held.go_on.set()
    assert first.sender.answer().error.code == TritonError.CANCELLED


def test_errors_have_codes_and_a_bug_keeps_its_secrets(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    late = Asked(timeout=1, prompt=text("a pear"), num_inference_steps=[50])
    run(model, late)
    assert late.sender.answer().error.code == TritonError.CANCELLED

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(model._service, "submit", broken)
    bug = Asked(prompt=text("a pear"))
    run(model, bug)
    error = bug.sender.answer().error
    assert (error.code, error.message) == (TritonError.INTERNAL, "an error of the server, which its log has")
    monkeypatch.undo()
    model._service.stop()
    refused = Asked(prompt=text("a pear"))
    run(model, refused)
    assert refused.sender.answer().error.code == TritonError.UNAVAILABLE


def test_tensors_become_a_request() -> None:
    image = np.zeros((2, 8, 8, 3), np.uint8)
    request = request_of(
        {
            "prompt": text("a", "b"),
            "seed": np.array([3, 2**64 - 1], np.uint64),
            "guidance_scale": np.array([7.3]),
            "image": image,
            "options": text('{"eta": 0.5, "scheduler_settings": {"timestep_spacing": "trailing"}}'),
            "control_edges": image[:1],
            "control_edges_scale": np.array([0.3]),
        },
        ("edges", "depth"),
    )
    assert request.prompt == ["a", "b"]
    assert request.seeds == [3, 2**64 - 1]
    assert (request.guidance_scale, request.eta) == (7.3, 0.5)
    assert request.scheduler_settings == {"timestep_spacing": "trailing"}
    assert request.image is image
    assert [(name, scale) for name, (_, scale) in request.controls.items()] == [("edges", 0.3)]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"options": text("{")}, "options is not valid JSON"),
        ({"options": text("[]")}, "options is not a JSON object"),
        ({"options": text('{"latents": [1]}')}, "latents cannot be one of the options"),
        ({"options": text('{"controls": {"edges": "/etc/passwd"}}')}, "controls cannot be one of the options"),
        ({"options": text('{"image": "/etc/passwd"}')}, "image cannot be one of the options"),
        ({"options": text('{"ip_adapter_image": "/etc/passwd"}')}, "ip_adapter_image cannot be one of the options"),
        ({"options": text('{"stages": {"base": {"image": "/etc/passwd"}}}')}, "stages 'base'"),
        ({"options": text('{"stepz": 3}')}, "unknown argument 'stepz'"),
        ({"prompt": np.array([b"\xff"], object)}, "prompt is no UTF-8"),
        ({"prompt": text()}, "prompt"),
        ({"num_inference_steps": np.array([1, 2])}, "num_inference_steps"),
    ],
)
def test_tensors_that_are_no_request(inputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        request_of({"prompt": text("a"), **inputs})
