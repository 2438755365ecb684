"""Guidance at some noise levels only, against the whole matrix with guidance 1 in the other rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ldmrt.runtime
from ldmrt.runtime import LdmrtError, Pipeline, Request, plan_from_config
from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.samplers.guidance import guided_rows

PROMPT = "two pears"


class Counting:
    """An engine that notes the rows that it is given."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.inputs, self.outputs = engine, engine.inputs, engine.outputs
        self.rows: list[int] = []

    def __call__(self, **arrays: Any) -> Any:
        self.rows.append(len(arrays["sample"]))
        return self._engine(**arrays)

    def close(self) -> None:
        self._engine.close()


@pytest.fixture
def pipeline(bundle: Path) -> Any:
    opened = ldmrt.runtime.open(bundle, check=False)
    yield replace(opened, engines=LazyEngines.of({**opened.engines, "unet": Counting(opened.engines["unet"])}))
    opened.close()


@pytest.mark.parametrize("scheduler", ["ddim", "heun", "dpmpp_2m_karras"])
def test_rows_are_those_between_the_levels(scheduler: str) -> None:
    plan = plan_from_config({}, 12, name=scheduler)
    levels = plan.sigma / plan.alpha
    edge = float(levels[4])
    found = guided_rows(plan, (0.5, edge)).tolist()
    assert found == [0.5 < level <= edge for level in levels.tolist()]
    assert found[4]  # the upper end belongs to it
    assert not guided_rows(plan, (edge, 1e4))[4]  # the lower does not


def test_no_clean_part_is_no_finite_level() -> None:
    config = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    plan = plan_from_config(config, 4, name="ddim")
    assert plan.alpha[0] == 0
    assert guided_rows(plan, (0, 1e9)).tolist() == [False, True, True, True]


@pytest.mark.parametrize("scheduler", ["heun", "euler_a", "dpmpp_2m"])
def test_as_the_whole_matrix_with_guidance_of_one(pipeline: Pipeline, scheduler: str) -> None:
    asked: dict[str, Any] = {
        "prompt": PROMPT,
        "num_images_per_prompt": 2,
        "num_inference_steps": 6,
        "seed": 3,
        "scheduler": scheduler,
    }
    level, unet = (0.4, 3.0), pipeline.engines["unet"]
    found = pipeline(**asked, guidance_interval=level, guidance_scale=4.0)
    plan = pipeline.plan(Request(PROMPT, num_inference_steps=6, scheduler=scheduler))
    guided = guided_rows(plan, level)
    assert 0 < guided.sum() < len(guided)
    assert unet.rows == [4 if here else 2 for here in guided]  # type: ignore[attr-defined]
    strong, none = (pipeline.prepare(Request(**asked, guidance_scale=scale)) for scale in (4.0, 1.0 + 1e-12))
    by_time = dict(zip(plan.t.tolist(), guided, strict=True))
    *_, last = replace(strong, model=lambda x, t, into: (strong if by_time[t] else none).model(x, t, into)).steps()
    # guidance 1 weighs the negative prompt by 1e-12: what differs are float32's roundings in another batch size
    np.testing.assert_allclose(found.latents, last.x, atol=2e-5 * np.abs(last.x).max())
    plain = pipeline(**asked, guidance_scale=4.0).latents
    assert np.abs(found.latents - plain).max() > 1e-2 * np.abs(plain).max()


def test_interval_of_all_rows_changes_nothing(pipeline: Pipeline) -> None:
    asked: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 3, "seed": 3, "guidance_scale": 4.0}
    assert pipeline(**asked, guidance_interval=(0, 1e4)).pixels.tobytes() == pipeline(**asked).pixels.tobytes()


@pytest.mark.parametrize("ends", [(1, 1), (2, 1), (-1, 2), (0.5, np.inf), (0.5, np.nan), (1, 2, 3)])
def test_impossible_interval(pipeline: Pipeline, ends: Any) -> None:
    with pytest.raises(LdmrtError, match="invalid guidance_interval; expected two noise levels, low and high"):
        pipeline(PROMPT, guidance_interval=ends)
