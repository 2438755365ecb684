"""What a base begins of a variation or of latents, a refiner ends; what it cannot end is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ldmrt.runtime
from ldmrt.runtime import InvalidRequest, Pipeline, Request
from ldmrt.runtime.pipeline.refined import RefinedPipeline

ASKED: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 4.0, "num_images_per_prompt": 2, "seed": 7}
TOLERANCE = 1e-6  # of the largest latent: float32's rounding of rows whose tables begin elsewhere; 3e-7 is measured
LATENTS = np.random.default_rng(0).standard_normal((2, 4, 8, 8), np.float32)


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Iterator[Pipeline]:
    with ldmrt.runtime.open(bundle, "onnxruntime", check=False) as opened:
        yield opened


@pytest.mark.parametrize(
    "fields",
    [{"variation_seed": 20, "variation_strength": 0.3}, {"image_latents": LATENTS, "strength": 0.75}],
    ids=["variation", "latents"],
)
def test_a_model_that_refines_itself_draws_what_it_draws_alone(pipeline: Pipeline, fields: dict[str, Any]) -> None:
    """DDIM keeps nothing between rows, so that the two halves are one."""
    request = Request("two pears", **ASKED, **fields)
    found, alone = RefinedPipeline(pipeline, pipeline, 0.5).generate(request), pipeline.generate(request)
    assert np.abs(found.latents - alone.latents).max() <= TOLERANCE * np.abs(alone.latents).max()
    assert found.seeds == alone.seeds == request.seeds


def test_outpaint_is_refused_by_its_name(pipeline: Pipeline) -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(InvalidRequest, match="outpaint cannot be combined with a refiner"):
        RefinedPipeline(pipeline, pipeline)("two pears", image=image, outpaint=(0, 0, 8, 0))
