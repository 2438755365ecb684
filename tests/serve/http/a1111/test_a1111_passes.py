"""AUTOMATIC1111's second pass and variation seeds, as the `webuiapi` client asks for them."""

from typing import Any

import numpy as np
import webuiapi

from ldmrt.runtime import Request
from ldmrt.runtime.pipeline.pipeline import Pipeline

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
