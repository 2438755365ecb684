"""Finished images are looked at once, whatever draws them, and flagged ones leave by no other way."""

import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from numpy.typing import NDArray
from PIL import Image

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.runtime import LdmrtWarning, Pipeline, RefinedPipeline, Request
from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.bundle.graphs import SAFETY_CHECKER
from ldmrt.runtime.errors import BundleError, NotFinite
from ldmrt.runtime.images.clip import clip_pixels
from ldmrt.runtime.pipeline.autoencoder.decode import Decoding
from ldmrt.runtime.pipeline.autoencoder.safety import CONCEPTS, SPECIAL
from ldmrt.runtime.pipeline.call import ImagePipeline
from ldmrt.runtime.samplers.plan import Latents
from ldmrt.runtime.tensors import Array, TensorSpec
from ldmrt.serve.jobs.job import Job
from ldmrt.serve.jobs.service import Service
from ldmrt.serve.models.models import fixed
from ldmrt.tools.console.drawing.rows import Previews, in_rows, save_rows
from ldmrt.tools.console.terminal.screen import Screen

from ...support.pipelines import save_pipeline

SIZE = 30
ASKED: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 1.0, "seed": 5}


class Checker:
    """Flags images in turn as it is told, and keeps what it is shown."""

    inputs = (TensorSpec("pixel_values", "float32", ("batch", 3, SIZE, SIZE)),)
    outputs = tuple(TensorSpec(name, "float32", ("batch", 1)) for name in (SPECIAL, CONCEPTS))

    def __init__(self, *scores: float) -> None:
        self.scores, self.seen = scores, list[Array]()

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        score = self.scores[len(self.seen) % len(self.scores)]
        self.seen.append(inputs["pixel_values"])
        return {SPECIAL: np.full((1, 1), -1, np.float32), CONCEPTS: np.full((1, 1), score, np.float32)}

    def close(self) -> None:
        pass


def carrying(pipeline: Pipeline, checker: Checker) -> Pipeline:
    makers: dict[str, Callable[[], Any]] = {
        name: (lambda name=name: pipeline.engines[name])
        for name in pipeline.engines  # type: ignore[misc]
    }
    return replace(pipeline, engines=LazyEngines({**makers, SAFETY_CHECKER: lambda: checker}))


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> Pipeline:
    return torch_pipeline(load(checkpoint))


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    pipeline = torch_pipeline(load(save_pipeline("upscaler", tmp_path_factory.mktemp("stage") / "upscaler")))
    return replace(pipeline, stage=replace(pipeline.stage, name="large", number=1))


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "1 of . images were flagged", LdmrtWarning)
        yield


def shown(pixels: NDArray[np.uint8]) -> list[Array]:
    return [clip_pixels("image", [image], SIZE) for image in pixels]


def ways(pipeline: ImagePipeline, request: Request) -> list[Any]:
    """By `generate`, among other requests, and row by row."""
    return [pipeline.generate(request), *pipeline.draw([request]), in_rows(pipeline, request, 9, [])]


@pytest.mark.parametrize("kind", ["one model", "cascade", "base", "refiner", "hires", "parts"])
def test_finished_images_are_looked_at_once(
    kind: str, plain: Pipeline, upscaler: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every way to draw; the first of two is flagged, and nothing else changes."""
    checker, request = Checker(1.0, -1.0), Request("two pears", **ASKED, num_images_per_prompt=2)
    checked = carrying(plain, checker)
    pipelines: tuple[ImagePipeline, ImagePipeline] = plain, checked
    if kind == "cascade":
        pipelines = replace(plain, later=(upscaler,)), replace(checked, later=(upscaler,))
    elif kind in ("base", "refiner"):
        both = (checked, plain) if kind == "base" else (plain, checked)
        pipelines = RefinedPipeline(plain, plain, 0.5), RefinedPipeline(*both, 0.5)
    elif kind == "hires":
        request = replace(request, hires=1.5, hires_upscaler="pixel")
    elif kind == "parts":
        monkeypatch.setattr("ldmrt.runtime.pipeline.batch_size.PIXELS", 16 * 16)
    for without, found in zip(ways(pipelines[0], request), ways(pipelines[1], request), strict=True):
        assert (without.nsfw_content_detected, found.nsfw_content_detected) == (None, [True, False])
        assert without.pixels.any(axis=(1, 2, 3)).all()
        assert not found.pixels[0].any()
        np.testing.assert_array_equal(found.pixels[1], without.pixels[1])
        np.testing.assert_array_equal(found.latents, without.latents)
        np.testing.assert_array_equal(checker.seen[:2], shown(without.pixels))
        del checker.seen[:2]
    assert checker.seen == []


def test_a_checker_that_is_off_leaves_it_to_the_other_model(plain: Pipeline) -> None:
    on, off = Checker(1.0), Checker(1.0)
    refiner = replace(carrying(plain, off), decoding=Decoding(safety="off"))
    result = RefinedPipeline(carrying(plain, on), refiner, 0.5)("two pears", **ASKED)
    assert (result.nsfw_content_detected, len(on.seen), len(off.seen)) == ([True], 1, 0)


@pytest.mark.parametrize(("safety", "black"), [("on", True), ("report", False)])
def test_rows_of_flagged_images_are_black(safety: str, black: bool, plain: Pipeline, tmp_path: Path) -> None:
    pipeline = replace(carrying(plain, Checker(1.0, -1.0)), decoding=Decoding(safety=safety))
    previews: Previews = []
    request = Request("two pears", **ASKED, num_images_per_prompt=2)
    result = in_rows(pipeline, request, pipeline.rows(request), previews)
    *rows, strip = save_rows(pipeline, previews, tmp_path / "out.png", result.nsfw_content_detected)
    assert len(rows) == len(previews) > 1
    for row in rows:
        image = np.asarray(Image.open(row))
        assert bool(image[:, :16].any()) is not black
        assert image[:, 18:].any()
    lines = np.asarray(Image.open(strip))
    assert bool(lines[:16, :16].any()) is not black
    assert lines[18:].any()


def test_a_screen_shows_the_finished_image_alone(plain: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = list[NDArray[np.uint8]]()
    monkeypatch.setattr(Screen, "show", lambda self, image, text: frames.append(image))
    screen, request = Screen(io.StringIO(), "kitty"), Request("two pears", **ASKED)
    rows = plain.rows(request)
    for safety, count in (("on", 1), ("report", rows + 1), ("off", rows + 1)):
        pipeline = replace(carrying(plain, Checker(1.0)), decoding=Decoding(safety=safety))
        in_rows(pipeline, request, rows, None, screen)
        assert (len(frames), bool(frames[-1].any())) == (count, safety != "on")
        frames.clear()


def test_a_service_sends_no_previews(plain: Pipeline) -> None:
    for safety, count in (("on", 0), ("report", 1)):
        pipeline = replace(carrying(plain, Checker(1.0)), decoding=Decoding(safety=safety))
        service, found = Service(fixed({"tiny": pipeline}, {"tiny": 8})), list[int]()

        def watch(job: Job, state: Any, service: Service = service, found: list[int] = found) -> None:
            latents: Latents | None = None if state is None else np.array(state.x0)
            found.extend([] if latents is None else [len(service.decode(job, latents, state.stage))])

        drawn = service.submit(Request("two pears", **ASKED), watcher=watch).result(60)
        service.close()
        assert bool(drawn.pixels.any()) is (safety != "on")
        assert found
        assert {*found} == {count}


@pytest.mark.parametrize("score", [np.nan, -np.inf])
def test_scores_that_are_not_finite_let_nothing_pass(score: float, plain: Pipeline) -> None:
    with pytest.raises(NotFinite, match="safety_checker: the scores of an image are not finite"):
        carrying(plain, Checker(score))("two pears", **ASKED)


def test_a_checker_of_no_fixed_width_is_refused(plain: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    open_width = (TensorSpec("pixel_values", "float32", ("batch", 3, "height", "width")),)
    monkeypatch.setattr(Checker, "inputs", open_width)
    with pytest.raises(BundleError, match="safety_checker: no input of a fixed width"):
        carrying(plain, Checker(1.0))("two pears", **ASKED)


@pytest.mark.parametrize("size", [(40, 36), (30, 480), (480, 30), (31, 600), (900, 30), (3, 100), (64, 64)])
def test_images_are_prepared_as_by_transformers(size: tuple[int, int]) -> None:
    """Also very long ones, of which only the middle is resized."""
    pixels = np.random.default_rng(2).integers(0, 255, (*size, 3), np.uint8)
    processor = transformers.CLIPImageProcessor(size=SIZE, crop_size=SIZE)
    expected = np.asarray(processor(Image.fromarray(pixels), return_tensors="np").pixel_values)
    found = clip_pixels("image", [pixels], SIZE)
    # A long image's positions are rounded otherwise, which tips a level of 255 at most; 0.26 is the least deviation.
    level = 0.0 if max(size) <= 16 * min(size) else 1 / 255 / 0.26
    np.testing.assert_allclose(found, expected, rtol=0, atol=level + 1e-6)


def test_the_memory_of_a_long_image_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    resize, largest = Image.Image.resize, 0

    def watched(self: Image.Image, size: tuple[int, int], *given: Any) -> Image.Image:
        nonlocal largest
        largest = max(largest, size[0] * size[1])
        return resize(self, size, *given)

    monkeypatch.setattr(Image.Image, "resize", watched)
    for size in ((1, 65000), (65000, 1), (8, 128)):
        assert clip_pixels("image", [Image.new("RGB", size)], SIZE).shape == (1, 3, SIZE, SIZE)
    assert 0 < largest <= 16 * SIZE * SIZE
