"""AUTOMATIC1111's second pass and variation seeds, as the `webuiapi` client asks for them."""

import io
import json
from typing import Any

import httpx
import numpy as np
import webuiapi
from PIL import Image

from ldmrt.runtime import Request
from ldmrt.runtime.images.resizing import resize
from ldmrt.runtime.pipeline.pipeline import Pipeline

from ...conftest import until
from .test_a1111 import SAME, SMALL, api, pixels

__all__ = ["api"]


def test_variations_give_the_pipelines_images(api: webuiapi.WebUIApi, pipeline: Pipeline) -> None:
    asked: dict[str, Any] = {"prompt": "two pears", "seed": 7, "subseed_strength": 0.3, "cfg_scale": 3.0, "eta": 0.0}
    result = api.txt2img(**asked, subseed=20, batch_size=2, **SMALL)
    request = Request(
        "two pears", negative_prompt="", seed=7, variation_seed=20, variation_strength=0.3, guidance_scale=3.0,
        num_images_per_prompt=2, eta=0.0, width=16, height=16, **SAME,
    )  # fmt: skip
    np.testing.assert_array_equal(pixels(result.images), pipeline.generate(request).pixels)
    assert (result.info["all_seeds"], result.info["all_subseeds"]) == ([7, 7], [20, 21])
    assert "Variation seed: 21, Variation seed strength: 0.3" in result.info["infotexts"][1]
    drawn = api.txt2img(**asked, subseed=-1, **SMALL).info["subseed"]  # any other
    assert 0 <= drawn < 2**32


def test_a_second_pass_gives_the_pipelines_images(api: webuiapi.WebUIApi, pipeline: Pipeline) -> None:
    result = api.txt2img(
        prompt="two pears", seed=7, cfg_scale=3.0, enable_hr=True, hr_scale=2.0, hr_upscaler="Latent (nearest)",
        hr_second_pass_steps=3, denoising_strength=0.6, eta=0.0, **SMALL,
    )  # fmt: skip
    request = Request(
        "two pears", negative_prompt="", seed=7, guidance_scale=3.0, hires=2.0, hires_steps=5, hires_strength=3.5 / 5,
        hires_upscaler="latent-nearest", eta=0.0, width=16, height=16, **SAME,
    )  # fmt: skip
    assert pipeline.rows(request) == 2 + 3
    np.testing.assert_array_equal(pixels(result.images), pipeline.generate(request).pixels)
    assert (result.images[0].size, result.info["width"]) == ((32, 32), 16)
    texts = {"Denoising strength": 0.6, "Hires upscale": 2.0, "Hires steps": 3, "Hires upscaler": "Latent (nearest)"}
    assert result.info["extra_generation_params"] == texts
    assert "Latent (nearest)" in [mode["name"] for mode in api.get_latent_upscale_modes()]
    assert [one["name"] for one in api.get_upscalers()] == ["Lanczos"]


def test_schedules_go_on_in_the_second_pass(api: webuiapi.WebUIApi, pipeline: Pipeline) -> None:
    """2 steps, then all 4 that are asked for: of the second pass the first 3 evaluations have the first text."""
    asked: dict[str, Any] = {"seed": 7, "cfg_scale": 3.0, "eta": 0.0, "enable_hr": True, "denoising_strength": 0.5}
    result = api.txt2img(prompt="[a red apple:two pears:1.5]", hr_second_pass_steps=4, **asked, **SMALL)
    how: dict[str, Any] = {"negative_prompt": "", "seed": 7, "guidance_scale": 3.0, "eta": 0.0, **SAME}
    small = pipeline("a red apple", **how, width=16, height=16, output_type="latent").latents
    large = resize(small, (16, 16), "bilinear")
    by_hand = {**how, "num_inference_steps": 8, "prompt_syntax": "a1111", "image_latents": large}
    np.testing.assert_array_equal(
        pixels(result.images), pipeline("[a red apple:two pears:2]", **by_hand, strength=0.5).pixels
    )


def test_the_own_api_draws_both_passes(client: httpx.Client, pipeline: Pipeline) -> None:
    """Told of the rows of both; the file says what was asked for, so that it can be drawn again."""
    body: dict[str, Any] = {"prompt": "two pears", "num_inference_steps": 2, "seed": 7, "hires": 2, "hires_steps": 4}
    accepted = client.post("/v1/requests", json=body).json()
    until(lambda: client.get(f"/v1/requests/{accepted['id']}").json()["stage"] == "done")
    done = client.get(f"/v1/requests/{accepted['id']}").json()
    assert (done["row"], done["rows"]) == (4, 4)
    image = Image.open(io.BytesIO(client.get(done["images"][0]).content))
    np.testing.assert_array_equal(np.asarray(image), pipeline.generate(Request(**body)).pixels[0])
    saved = json.loads(image.info["ldmrt"])
    assert [saved[word] for word in ("hires", "hires_steps", "width", "height")] == [2.0, 4, 16, 16]
    assert "Size: 16x16" in image.info["parameters"]
    refused = client.post("/v1/requests", json={**body, "hires": 8, "width": 2048, "height": 2048})
    assert (refused.status_code, "too many pixels" in refused.text) == (422, True)
