"""A service loads one model after another where they do not fit together, and replaces one while it draws."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from ldmrt.runtime import BundleError, LdmrtError
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.serve.jobs.reloading import reload_models
from ldmrt.serve.jobs.service import Service
from ldmrt.serve.models.models import Models, fixed

from .conftest import held, request, until


def test_models_that_do_not_fit_together_are_drawn_by_turns(bundle: Path) -> None:
    """A model waits for the one that is in memory, is loaded in its place, and draws the same images."""
    with open_pipeline(bundle) as first, open_pipeline(bundle) as second:
        right = first.generate(request(3)).pixels
        models = Models(budget=1.5 * first.weights)
        for name, pipeline in (("first", first), ("second", second)):
            assert pipeline.weights > 0
            models.put(name, pipeline, 8)
        service = Service(models)
        for _ in range(2):
            running, holding = held(service)
            other = service.submit(request(3), "second")
            assert (other.stage, service.position(other)) == ("waiting", 0)
            assert [models.is_loaded(name) for name in models] == [True, False]
            holding.let_go()
            assert running.result(60).seeds == [0]
            np.testing.assert_array_equal(other.result(60).pixels, right)
            assert [models.is_loaded(name) for name in models] == [False, True]
        service.close()


def test_a_model_is_replaced_while_it_draws(bundle: Path) -> None:
    """The request that runs ends with the old pipeline, which is closed then; the next one has the new one."""
    old, new = open_pipeline(bundle), open_pipeline(bundle)
    service = Service(fixed({"tiny": old}, {"tiny": 8}))
    running, holding = held(service)
    service.replace_model("tiny", new)
    later = service.submit(request(1))
    assert later.result(60).seeds == [1]
    assert running.stage == "running"
    holding.let_go()
    assert running.result(60).seeds == [0]
    until(lambda: is_closed(old))
    assert new.generate(request()).seeds == [0]
    service.close()
    service.models.close()
    assert is_closed(new)


def is_closed(pipeline: Pipeline) -> bool:
    """Whether a pipeline draws no more."""
    try:
        pipeline.generate(request())
    except LdmrtError as error:
        return "it is closed" in str(error)
    return False


def test_a_request_that_fails_with_a_replaced_model_is_drawn_by_the_new_one(bundle: Path, tmp_path: Path) -> None:
    """Such as one whose decoder had not been opened when its file was replaced."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    old, new = open_pipeline(folder), open_pipeline(bundle)
    right = new.generate(request(num_inference_steps=50)).pixels
    service = Service(fixed({"tiny": old}, {"tiny": 8}))
    running, holding = held(service)
    old.engines.close()  # what it has not opened cannot be opened any more
    service.replace_model("tiny", new)
    holding.let_go()
    np.testing.assert_array_equal(running.result(60).pixels, right)
    assert (running.stage, running.called) == ("done", 50)
    service.close()
    service.models.close()


def test_a_bundle_that_cannot_be_opened_again_changes_nothing(
    service: Service, pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    def damaged(path: str) -> Pipeline:
        raise BundleError("bundle", f"{path} is damaged")

    with caplog.at_level(logging.ERROR, "ldmrt.serve"):
        reload_models(service, {"tiny": "a/b"}, damaged)
    assert "model tiny was not reloaded: bundle: a/b is damaged" in caplog.text
    assert service.models["tiny"] is pipeline
    assert service.submit(request(num_inference_steps=2)).result(60).seeds == [0]
