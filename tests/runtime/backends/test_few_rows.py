"""A network that is called on few rows at a time: which rows, and that its outputs are those of one call."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from ldmrt.runtime.backends.wrappers.few_rows import LATENTS, FewRows
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.tensors import Array, Arrays, TensorSpec, conform

SIDE = 64  # of the latents of one row, which are LATENTS


class Rows:
    """A network whose rows are functions of the same rows of its inputs; it notes how many rows each call had."""

    inputs = (
        TensorSpec("sample", "float32", ("batch", 1, "height/8", "width/8")),
        TensorSpec("timestep", "float32", ("timesteps",)),
        TensorSpec("context", "float32", ("batch", 3)),
        TensorSpec("scale", "float32", (2,)),  # as long as some batches
    )
    outputs = (TensorSpec("out_sample", "float32", inputs[0].shape), TensorSpec("mean", "float32", ("batch",)))

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, **arrays: Array) -> Arrays:
        conform("unet", self.inputs, arrays)
        sample, timestep, context, scale = (arrays[spec.name] for spec in self.inputs)
        self.calls.append(len(sample))
        added = timestep + context @ np.arange(3, dtype=np.float32) * scale[1]
        return {"out_sample": sample * scale[0] + added[:, None, None, None], "mean": sample.mean((1, 2, 3))}

    def close(self) -> None:
        self.calls.append(0)


def arrays(rows: int, side: int, timesteps: int) -> dict[str, Array]:
    random = np.random.default_rng(rows)
    shapes = {"sample": (rows, 1, side, side), "timestep": (timesteps,), "context": (rows, 3), "scale": (2,)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("one_time", [True, False])
@pytest.mark.parametrize(
    ("rows", "side", "calls"),
    [
        (1, SIDE, [1]),
        (2, SIDE, [1, 1]),
        (3, 2 * SIDE, [1, 1, 1]),  # a row that is larger is one call all the same
        (9, SIDE // 2, [4, 4, 1]),
        (4, SIDE // 2, [4]),
        (33, 8, [33]),
    ],
)
def test_outputs_are_those_of_one_call(rows: int, side: int, calls: list[int], one_time: bool) -> None:
    assert LATENTS == SIDE**2
    network, given = Rows(), arrays(rows, side, 1 if one_time else rows)
    whole: Mapping[str, Array] = Rows()(**given)
    found = FewRows(network)(**given)
    assert network.calls == calls
    assert found.keys() == whole.keys()
    for name in whole:
        np.testing.assert_array_equal(found[name], whole[name])


def test_rows_that_differ_in_number_are_refused_by_the_network() -> None:
    given = arrays(3, SIDE, 3) | {"context": np.zeros((2, 3), np.float32)}
    with pytest.raises(LdmrtError, match="context"):
        FewRows(Rows())(**given)


@pytest.mark.parametrize(("batch", "steps", "calls"), [("batch_size", "steps", [1, 1]), (2, 2, [2])])
def test_the_names_of_dimensions_do_not_matter(batch: int | str, steps: int | str, calls: list[int]) -> None:
    """Graphs that another exporter wrote call them otherwise, or have a fixed number of rows."""
    network, given = Rows(), arrays(2, SIDE, 2)
    first = {"sample": batch, "timestep": steps, "context": batch, "scale": 2}
    network.inputs = tuple(replace(spec, shape=(first[spec.name], *spec.shape[1:])) for spec in Rows.inputs)
    found = FewRows(network)(**given)
    assert network.calls == calls
    np.testing.assert_array_equal(found["out_sample"], Rows()(**given)["out_sample"])


def test_a_network_without_sample_is_called_as_it_is() -> None:
    class Text:
        inputs = (TensorSpec("ids", "int64", ("batch", 7)),)
        outputs: tuple[TensorSpec, ...] = ()

        def __call__(self, **arrays: Array) -> Arrays:
            return arrays

        def close(self) -> None:
            pass

    ids = np.zeros((9, 7), np.int64)
    assert FewRows(Text())(ids=ids)["ids"] is ids


def test_closing_closes_the_network() -> None:
    network = Rows()
    FewRows(network).close()
    assert network.calls == [0]
