"""A certificate states the cost of the deep cache."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ldmrt.runtime
from ldmrt.export.parity.record import record
from ldmrt.model import Checkpoint
from ldmrt.runtime import Certificate
from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.graphs import DEEP, SHALLOW
from ldmrt.runtime.parity.certify import certify
from ldmrt.runtime.parity.compare import EVERY, compare
from ldmrt.runtime.parity.metrics import psnr
from ldmrt.runtime.parity.tolerances import tolerances
from ldmrt.runtime.pipeline.request.field_names import from_short


class Off:
    """An engine that is off by a thousandth."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.inputs, self.outputs = engine, engine.inputs, engine.outputs

    def __call__(self, **arrays: Any) -> dict[str, Any]:
        return {name: array * np.float32(1.001) for name, array in self._engine(**arrays).items()}

    def close(self) -> None:
        self._engine.close()


@pytest.fixture
def checked(halves: Path, loaded: Checkpoint) -> Iterator[Any]:
    """The tiny bundle held to PyTorch, with some engines replaced."""
    reference, certified = record(loaded, "two pears"), Bundle.open(halves, check=False)
    pipeline = ldmrt.runtime.open(halves, check=False)

    def run(**replaced: Any) -> tuple[ldmrt.runtime.Pipeline, Certificate]:
        changed = replace(pipeline, engines=LazyEngines.of({**pipeline.engines, **replaced}))
        measured = list(compare(changed, "onnxruntime", reference, tolerances(certified)))
        return pipeline, certify(measured, certified, reference)

    yield run
    pipeline.close()


def test_certificate_states_its_cost(checked: Any) -> None:
    pipeline, made = checked()
    assert made.within
    assert {DEEP, SHALLOW} <= {one.component for one in made.figures}
    (cost,) = made.costs
    fields = from_short(made.about["request"])
    with_it, without = (pipeline(**fields, deep_cache=every).pixels[0] for every in (EVERY, None))
    assert cost.psnr == psnr(with_it, without) < 60
    assert (cost.shortcut, cost.prompt, cost.seed) == ("deep cache 3", "two pears", 0)
    assert Certificate.from_json(json.loads(json.dumps(made.to_json()))) == made
    _, wrong = checked(**{SHALLOW: Off(pipeline.engines[SHALLOW])})
    assert wrong.culprit == SHALLOW
    older = made.to_json()
    del older["costs"]  # as those written before there were any
    assert Certificate.from_json(older) == replace(made, costs=())
