"""Which rows run all of the U-Net under a deep cache, with stand-ins for its two parts that both are the U-Net."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ldmrt.runtime
from ldmrt.runtime import LdmrtError, Pipeline, Request
from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.bundle.graphs import DEEP, FEATURE, SHALLOW
from ldmrt.runtime.pipeline.denoising.deep_cache import full_times

ASKED: dict[str, Any] = {
    "prompt": "two pears",
    "seed": 3,
    "guidance_scale": 4.0,
    "num_inference_steps": 7,
    "scheduler": "ddim",
}


class Noted:
    """The U-Net as one of the two, which notes its calls: "F2" is full with two calls, "s" shallow."""

    def __init__(self, unet: Any, log: list[str], name: str) -> None:
        self._unet, self._log, self._name = unet, log, name
        self.inputs, self.outputs = unet.inputs, unet.outputs

    def __call__(self, *, deep: Any = None, **arrays: Any) -> dict[str, Any]:
        out, log = self._unet(**arrays), self._log
        if self._name == DEEP:
            log.append(f"F{len(arrays['sample'])}")
            return {**out, FEATURE: np.full((len(arrays["sample"]), 1), len(log))}  # of which row it is
        assert deep.shape == (len(arrays["sample"]), 1)
        assert log[deep[0, 0] - 1].startswith("F")
        assert all(one.startswith("s") for one in log[deep[0, 0] :])  # the last full one
        log.append("s")
        return {"out_sample": out["out_sample"]}

    def close(self) -> None:
        self._unet.close()


@pytest.fixture
def opened(bundle: Path) -> Iterator[Pipeline]:
    pipeline = ldmrt.runtime.open(bundle, check=False)
    yield pipeline
    pipeline.close()


def noting(opened: Pipeline) -> tuple[Pipeline, list[str]]:
    log: list[str] = []
    parts = {name: Noted(opened.engines["unet"], log, name) for name in (DEEP, SHALLOW)}
    return replace(opened, engines=LazyEngines.of({**opened.engines, **parts})), log


@pytest.mark.parametrize(
    ("changed", "rows"),
    [
        ({"deep_cache": 2}, "F2 s F2 s F2 s F2"),
        ({"deep_cache": 3}, "F2 s s F2 s s F2"),
        ({"deep_cache": 9}, "F2 s s s s s s"),
        ({"deep_cache": 3, "guidance_scale": 1.0, "num_images_per_prompt": 3}, "F3 s s F3 s s F3"),
        # Its second row of a step and the next step's first are of one time.
        ({"deep_cache": 2, "num_inference_steps": 4, "scheduler": "heun"}, "F2 s s F2 F2 s s"),
        ({"deep_cache": 3, "image": np.zeros((16, 16, 3), np.uint8), "strength": 0.6}, "F2 s s F2"),
        # Guided in the middle alone: what is kept of another number of calls is of no use.
        ({"deep_cache": 4, "num_inference_steps": 9, "guidance_interval": (0.4, 3.0)}, "F1 s F2 s F2 s s F1 F1"),
    ],
    ids=str,
)
def test_every_nth_time_is_full(opened: Pipeline, changed: dict[str, Any], rows: str) -> None:
    """And as the stand-ins are the U-Net itself, the picture is that without a deep cache, to the last bit."""
    noted, log = noting(opened)
    found = noted(**{**ASKED, **changed})
    assert " ".join(log) == rows
    expected = opened(**{**ASKED, **changed, "deep_cache": None})
    assert found.latents.tobytes() == expected.latents.tobytes()


@pytest.mark.parametrize("off", [None, 1])
def test_off_is_the_unet_itself(opened: Pipeline, off: int | None) -> None:
    noted, log = noting(opened)
    noted(**ASKED, deep_cache=off)
    assert log == []


def test_a_task_can_be_run_twice_and_knows_of_no_other(opened: Pipeline) -> None:
    noted, log = noting(opened)
    one, other = (noted.prepare(Request(**ASKED, deep_cache=4)) for _ in range(2))
    for task in (one, other, one):
        log.clear()
        task.last()
        assert " ".join(log) == "F2 s s s F2 s s"


def test_rows_of_one_time_count_once(opened: Pipeline) -> None:
    plan = opened.plan(Request("", num_inference_steps=4, scheduler="heun"))
    times = np.float32(plan.t).tolist()
    assert times[1::2] == times[2::2]
    assert full_times(plan, 2) == {times[0], times[3]}
    assert full_times(plan, 3) == {times[0], times[5]}
    assert full_times(plan, 1) == set(times)


EDGES = np.zeros((8, 8), np.uint8)


def test_refused(opened: Pipeline) -> None:
    with pytest.raises(LdmrtError, match=r"has no U-Net cut in two for a deep cache\n.* --deep-cache"):
        opened(**ASKED, deep_cache=2)
    with pytest.raises(LdmrtError, match="invalid deep_cache; expected at least 1; found 0"):
        Request("", deep_cache=0)
    with pytest.raises(LdmrtError, match=r"invalid deep_cache; expected a whole number; found 2\.5"):
        Request("", deep_cache=2.5)  # type: ignore[arg-type]
    with pytest.raises(LdmrtError, match="deep_cache cannot be combined with controls"):
        Request("", deep_cache=2, controls={"canny": EDGES})
    Request("", deep_cache=1, controls={"canny": EDGES})
