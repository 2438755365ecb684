"""The number of rows of a call is the fewest that are nearly as fast for each row as any."""

import numpy as np

from ldmrt.runtime.tensors import TensorSpec
from ldmrt.serve.batching.knee import LONGEST, blank_inputs, doubled, knee, measure, timed

from .conftest import Doubling


def test_the_knee_of_a_network_whose_calls_cost_a_fixed_time() -> None:
    """Of 10 ms a call and 1 ms a row, 128 rows are within a twentieth of the rate of 256, and 64 are not."""
    rates = measure(lambda rows: 0.010 + 0.001 * rows, 256)
    assert list(rates) == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    np.testing.assert_allclose(rates[256], 256 / 0.266)
    assert knee(rates) == 128  # 256 / 0.266 = 962, 128 / 0.138 = 928, 64 / 0.074 = 865


def test_a_network_that_gains_nothing_has_one_row() -> None:
    assert knee(measure(lambda rows: 0.5 * rows, 2)) == 1


def test_long_calls_are_not_made_longer() -> None:
    rates = measure(lambda rows: LONGEST * rows, 64)
    assert list(rates) == [1, 2]


def test_the_most_rows_are_tried_too() -> None:
    assert [list(doubled(most)) for most in (1, 2, 6)] == [[1], [1, 2], [1, 2, 4, 6]]


def test_each_number_of_rows_runs_once_before_it_is_timed(network: Doubling) -> None:
    run = timed(network, 4, 2)
    assert min(run(2), run(2), run(1)) >= 0
    assert network.rows == [2, 2, 2, 1, 1]


def test_inputs_of_networks_by_whoever_exported_them(network: Doubling) -> None:
    """Sides are of latents, whether a symbol says so or not; tokens are as many as CLIP reads."""
    network.inputs = (
        TensorSpec("sample", "float32", ("batch_size", 4, "height", "width")),
        TensorSpec("timestep", "int64", ("steps",)),
        TensorSpec("encoder_hidden_states", "float32", ("batch_size", "sequence_length", 8)),
        TensorSpec("residual", "float16", ("batch", 320, "height/16", "width/16")),
    )  # type: ignore[assignment]
    shapes = {name: array.shape for name, array in blank_inputs(network, 64, 8, 3).items()}
    assert shapes == {
        "sample": (3, 4, 8, 8),
        "timestep": (3,),
        "encoder_hidden_states": (3, 77, 8),
        "residual": (3, 320, 4, 4),
    }
