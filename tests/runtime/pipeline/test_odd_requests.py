"""A pipeline answers every odd value of a request's field with images or with one error."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import ldmrt.runtime
from ldmrt.runtime import LdmrtError, Pipeline, Request
from ldmrt.runtime.pipeline.request.field_names import FIELDS

from .test_request import ODD, made


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Iterator[Pipeline]:
    with ldmrt.runtime.open(bundle, "onnxruntime", check=False) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in FIELDS if name not in ("image", "mask_image", "callback_on_step_end")]
)
def test_images_or_one_error(name: str, pipeline: Pipeline) -> None:
    for value in ODD:
        request = made(name, value)
        if not isinstance(request, Request):
            continue
        if name in ("num_inference_steps", "num_images_per_prompt") and getattr(request, name) > 200:
            continue  # of as many as it says
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            steps = {} if name == "num_inference_steps" else {"num_inference_steps": 2}
            try:
                assert pipeline(request, **steps).pixels.shape[0] == request.total_images
            except LdmrtError:
                continue
