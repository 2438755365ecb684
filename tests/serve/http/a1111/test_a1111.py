"""AUTOMATIC1111's API, as the `webuiapi` client speaks it."""

import base64
import io
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import webuiapi
from PIL import Image

from ldmrt.runtime import Request
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.serve.http.access import digest
from ldmrt.serve.jobs.job import Job

from ...conftest import until
from ..conftest import Running

SMALL: dict[str, Any] = {"width": 16, "height": 16, "steps": 2}
DDIM = {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}
SAME: dict[str, Any] = {"num_inference_steps": 2, "scheduler": "ddim", "scheduler_settings": DDIM}


def api_of(server: Running) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(baseurl=f"{server.url}/sdapi/v1", sampler="DDIM", steps=2)


@pytest.fixture
def api(running: Running) -> webuiapi.WebUIApi:
    return api_of(running)


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """An image of the tiny model's size."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))


def test_txt2img_gives_the_pipelines_images(api: webuiapi.WebUIApi, pipeline: Pipeline) -> None:
    result = api.txt2img(
        prompt="two pears", negative_prompt="a plum", seed=7, cfg_scale=3.0, batch_size=2, n_iter=2, width=32,
        height=16, eta=0.5, override_settings={"CLIP_stop_at_last_layers": 2},
    )  # fmt: skip
    request = Request(
        "two pears", negative_prompt="a plum", seed=7, guidance_scale=3.0, num_images_per_prompt=4, width=32,
        height=16, eta=0.5, clip_skip=1, negative_clip_skip=1, **SAME,
    )  # fmt: skip
    np.testing.assert_array_equal(pixels(result.images), pipeline.generate(request).pixels)
    assert (result.info["seed"], result.info["all_seeds"], result.info["clip_skip"]) == (7, [7, 8, 9, 10], 2)
    assert result.info["infotexts"][1].splitlines()[:2] == ["two pears", "Negative prompt: a plum"]
    assert (
        "Steps: 2, Sampler: DDIM, Schedule type: automatic, CFG scale: 3.0, Seed: 8, Size: 32x16"
        in (result.info["infotexts"][1])
    )
    assert [image.info["parameters"] for image in result.images] == result.info["infotexts"]
    assert (result.parameters["cfg_scale"], result.parameters["width"]) == (3.0, 32)


def test_a_seed_that_is_drawn_makes_the_image_again(api: webuiapi.WebUIApi) -> None:
    first, second = (api.txt2img(prompt="a pear", **SMALL) for _ in range(2))
    assert first.info["seed"] != second.info["seed"]
    again = api.txt2img(prompt="a pear", seed=first.info["seed"], **SMALL)
    np.testing.assert_array_equal(pixels(first.images), pixels(again.images))


def test_the_clients_default_sampler(running: Running, pipeline: Pipeline) -> None:
    api = webuiapi.WebUIApi(baseurl=f"{running.url}/sdapi/v1")
    result = api.txt2img(prompt="a pear", seed=7, **SMALL)
    even = {"scheduler": "euler_a", "scheduler_settings": {"timestep_spacing": "linspace"}}
    request = Request("a pear", negative_prompt="", guidance_scale=7.0, seed=7, num_inference_steps=2, **even)
    np.testing.assert_array_equal(pixels(result.images), pipeline.generate(request).pixels)


def test_img2img_gives_the_pipelines_images(api: webuiapi.WebUIApi, pipeline: Pipeline, picture: Image.Image) -> None:
    result = api.img2img([picture], prompt="a pear", seed=7, denoising_strength=0.6, batch_size=2, eta=0.0, **SMALL)
    request = Request(
        "a pear", negative_prompt="", image=picture, strength=0.6, guidance_scale=7.0, seed=7,
        num_images_per_prompt=2, eta=0.0, **SAME,
    )  # fmt: skip
    np.testing.assert_array_equal(pixels(result.images), pipeline.generate(request).pixels)
    assert result.info["extra_generation_params"] == {"Denoising strength": 0.6}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"enable_hr": True, "hr_resize_x": 64}, "hr_resize_x: unsupported; expected 0; found 64"),
        ({"enable_hr": True, "hr_upscaler": "ESRGAN_4x"}, "unknown upscaler 'ESRGAN_4x'"),
        ({"enable_hr": True, "denoising_strength": 0}, "denoising_strength: too small for a second pass"),
        ({"enable_hr": True, "denoising_strength": 1e-9}, "with 2 steps at least 2e-06; found 1e-09"),
        ({"styles": ["oil"]}, "no such style 'oil'"),
        ({"tiling": True}, "tiling: unsupported"),
        ({"restore_faces": True}, "restore_faces: unsupported"),
        ({"seed_resize_from_h": 64}, "seed_resize_from_h: unsupported"),
        ({"s_churn": 1}, "s_churn: unsupported"),
        ({"script_name": "X/Y/Z plot"}, "script_name: unsupported"),
        ({"sag": webuiapi.Sag()}, "alwayson_scripts: unsupported"),
        ({"prompt": "a pear <lora:fruit:1>"}, "prompt: no LoRA 'fruit' is loaded"),
        ({"negative_prompt": "<lora:fruit:1>"}, "a negative prompt loads no LoRA"),
        ({"override_settings": {"randn_source": "TPU"}}, "randn_source: unsupported; expected NV, CPU, GPU, ldmrt"),
        ({"sampler_name": "Euler b"}, "unknown sampler 'Euler b', did you mean 'Euler'?"),
        ({"sampler_name": "DPM++ 2S a"}, "unknown sampler 'DPM++ 2S a'"),
        ({"scheduler": "Caras"}, "unknown scheduler 'Caras', did you mean 'Karras'?"),
        ({"sampler_name": "Euler a", "scheduler": "Karras"}, "no Karras for Euler a; expected Uniform, SGM Uniform"),
        ({"sampler_name": "DPM++ SDE", "eta": 0.5}, "eta: unsupported; expected 1 for DPM++ SDE"),
        ({"override_settings": {"sd_model_checkpoint": "tinny"}}, "no model 'tinny', did you mean 'tiny'?"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 0}}, "CLIP_stop_at_last_layers: invalid option"),
        ({"override_settings": {"sd_vae": "other.pt"}}, "sd_vae: unsupported"),
        ({"override_settings": {"nonsense": 1}}, "unknown option 'nonsense'"),
        ({"steps": 501}, "too many steps"),
    ],
)
def test_fields_that_would_change_the_image_are_refused(
    api: webuiapi.WebUIApi, fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(RuntimeError) as refused:
        api.txt2img(**{"prompt": "a", "eta": 0.0, "alwayson_scripts": {}, **SMALL, **fields})
    status, text = refused.value.args
    assert status == 422
    assert says in text.replace('\\"', '"')


@pytest.mark.parametrize(
    ("images", "fields", "says"),
    [
        (0, {}, "init_images: wrong number of images; expected 1; found 0"),
        (2, {}, "init_images: wrong number of images; expected 1; found 2"),
        (1, {"width": 32, "resize_mode": 1}, "resize_mode: unsupported"),
        (1, {"mask_image": Image.new("L", (16, 16), 255), "inpainting_fill": 4}, "inpainting_fill: Input should be"),
        (1, {"mask_image": Image.new("L", (8, 8), 255)}, "a mask of another size than its image"),
    ],
)
def test_img2img_that_is_refused(
    api: webuiapi.WebUIApi, picture: Image.Image, images: int, fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(RuntimeError) as refused:
        api.img2img([picture] * images, prompt="a", **{**SMALL, **fields})
    assert refused.value.args[0] == 422
    assert says in refused.value.args[1]


def test_a_field_that_no_one_knows_is_refused(client: httpx.Client) -> None:
    answer = client.post("/sdapi/v1/txt2img", json={"prompt": "a", "sampler": "Euler"})
    assert (answer.status_code, answer.json()["detail"]) == (422, "sampler: Extra inputs are not permitted")


@pytest.mark.parametrize("number", ["Infinity", "NaN", "1e400", "-1", "true", '"many"', "[1]", '{"a": 1}'])
@pytest.mark.parametrize("name", ["cfg_scale", "s_tmax", "s_churn", "seed", "eta", "override_settings", "clip"])
def test_strange_numbers_break_nothing(client: httpx.Client, name: str, number: str) -> None:
    clip = f'"override_settings": {{"CLIP_stop_at_last_layers": {number}}}'
    field = clip if name == "clip" else f'"{name}": {number}'
    body = f'{{"prompt": "a", "steps": 1, {field}}}'
    answer = client.post("/sdapi/v1/txt2img", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 422)


def test_what_clients_ask_a_server(api: webuiapi.WebUIApi) -> None:
    (model,) = api.get_sd_models()
    assert (model["title"], model["model_name"], model["filename"]) == ("tiny", "tiny", "tiny")
    assert {"Euler a", "DPM++ 2M", "dpmpp_2m_karras"} <= set(api.util_get_sampler_names())
    assert api.util_get_scheduler_names() == ["automatic", "beta", "exponential", "karras", "sgm_uniform", "uniform"]
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    for ask in (
        api.get_sd_vae, api.get_loras, api.get_hypernetworks,
        api.get_face_restorers, api.get_realesrgan_models, api.get_prompt_styles,
    ):  # fmt: skip
        assert ask() == []
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert (api.get_cmd_flags(), api.get_memory()) == ({}, {"ram": {}, "cuda": {}})
    assert api.refresh_checkpoints() is None


def test_every_listed_sampler_draws(api: webuiapi.WebUIApi) -> None:
    from ldmrt.runtime.pipeline.infotext.samplers import SAMPLERS

    for name, sampler in SAMPLERS.items():
        for scheduler in ["Automatic", *sampler.spacings]:
            result = api.txt2img(prompt="a", sampler_name=name, scheduler=scheduler, **{**SMALL, "steps": 3})
            assert len(result.images) == 1


@pytest.fixture
def two(pipeline: Pipeline) -> Iterator[Running]:
    """A server with keys of two callers."""
    server = Running(pipeline, keys={digest("one"): "one", digest("two"): "two"})
    yield server
    server.stop()


def test_options_are_those_of_a_key(two: Running) -> None:
    first, second = api_of(two), api_of(two)
    first.session.headers["Authorization"] = "Bearer one"
    second.session.headers["Authorization"] = "Bearer two"
    assert first.set_options({"CLIP_stop_at_last_layers": 2, "sd_model_checkpoint": "tiny"}) is None
    skipped = [api.get_options()["CLIP_stop_at_last_layers"] for api in (first, second)]
    assert skipped == [2, 1]
    assert first.util_get_current_model() == "tiny"
    drawn = [api.txt2img(prompt="a pear", seed=7, eta=0.0, **SMALL) for api in (first, second)]
    assert [result.info["clip_skip"] for result in drawn] == [2, 1]
    once = second.txt2img(prompt="a pear", seed=7, eta=0.0, override_settings={"CLIP_stop_at_last_layers": 2}, **SMALL)
    np.testing.assert_array_equal(pixels(once.images), pixels(drawn[0].images))
    assert second.get_options()["CLIP_stop_at_last_layers"] == 1
    assert first.set_options({"sd_model_checkpoint": "tinny"})["detail"].startswith("sd_model_checkpoint: no model")


class Drawing:
    """A request that is drawn in a thread, and waits in each of its rows until it may go on."""

    def __init__(self, server: Running, api: webuiapi.WebUIApi, steps: int) -> None:
        self.outcome: Any = None
        self._rows, self.begun = threading.Semaphore(0), threading.Event()
        submit = server.service.submit

        def held(*args: Any, **options: Any) -> Job:
            return submit(*args, **{**options, "watcher": self._wait})

        server.service.submit = held  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._draw, args=(api, steps))
        self._thread.start()
        assert self.begun.wait(30)
        server.service.submit = submit  # type: ignore[method-assign]

    def _wait(self, job: Job, state: object) -> None:
        if state is not None:
            self.begun.set()
            assert self._rows.acquire(timeout=30)

    def _draw(self, api: webuiapi.WebUIApi, steps: int) -> None:
        try:
            self.outcome = api.txt2img(prompt="a pear", seed=7, eta=0.0, **{**SMALL, "steps": steps})
        except RuntimeError as error:
            self.outcome = error

    def go_on(self, rows: int) -> None:
        self._rows.release(rows)

    def end(self) -> Any:
        self.go_on(1000)
        self._thread.join(60)
        return self.outcome


def counted(ask: Callable[[], dict[str, Any]], row: int) -> dict[str, Any]:
    """Ask until so many rows are counted."""
    until(lambda: ask()["state"]["sampling_step"] >= row)
    return ask()


def test_progress(running: Running, api: webuiapi.WebUIApi, client: httpx.Client) -> None:
    def without_image() -> dict[str, Any]:
        return dict(client.get("/sdapi/v1/progress", params={"skip_current_image": True}).json())

    assert (api.get_progress()["progress"], api.get_progress()["state"]["job_count"]) == (0.0, 0)
    drawing = Drawing(running, api, steps=4)
    told = counted(without_image, 1)
    assert (told["progress"], told["state"]["sampling_steps"], told["state"]["job_count"]) == (0.25, 4, 1)
    assert told["eta_relative"] > 0
    assert told["current_image"] is None
    asked: dict[str, Any] = {}
    asking = threading.Thread(target=lambda: asked.update(api.get_progress()))
    asking.start()
    job = running.server.jobs.of("")[0]
    until(lambda: any("preview" in getattr(watcher, "__qualname__", "") for watcher in list(job._watchers)))
    drawing.go_on(2)  # the row that waits, and the next, which the preview is of
    asking.join(30)
    assert Image.open(io.BytesIO(base64.b64decode(asked["current_image"]))).size == (16, 16)
    assert len(drawing.end().images) == 1


@pytest.mark.parametrize("how", ["interrupt", "skip"])
def test_a_request_that_is_interrupted(running: Running, api: webuiapi.WebUIApi, how: str) -> None:
    drawing = Drawing(running, api, steps=400)
    getattr(api, how)()
    outcome = drawing.end()
    assert isinstance(outcome, RuntimeError)
    assert "cancelled by its caller" in outcome.args[1]
    assert api.get_progress()["state"]["job_count"] == 0


def test_another_keys_requests_are_not_interrupted(two: Running) -> None:
    first, second = api_of(two), api_of(two)
    first.session.headers["Authorization"] = "Bearer one"
    second.session.headers["Authorization"] = "Bearer two"
    drawing = Drawing(two, first, steps=3)
    assert second.get_progress()["state"]["job_count"] == 0
    second.interrupt()
    assert len(drawing.end().images) == 1
