"""The calibration of int8: on the recorded rows, with NNCF's ranges, which make NNCF's network again."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nncf")

from ldmrt.export.parity.record import record
from ldmrt.export.precision import calibrate
from ldmrt.export.precision.calibrate import by_nncf, calls_of_rows, ranges_of
from ldmrt.model import load
from ldmrt.runtime import Bundle, LdmrtError
from ldmrt.runtime.backends.openvino.convolutions import restore_convolutions
from ldmrt.runtime.backends.openvino.devices import core
from ldmrt.runtime.backends.openvino.int8 import between, compute_in_int8
from ldmrt.runtime.backends.openvino.network import read_graph
from ldmrt.runtime.tensors import Arrays

# Of NNCF's own mean error, whose weights have half as many steps. A value near the middle of two levels may take
# either, so two networks in int8 differ by as much as each does from float32. 0.86 was measured with the shipped model.
AS_GOOD = 1.1


def inputs(bundle: Bundle, count: int = 3) -> list[Arrays]:
    random, sizes = np.random.default_rng(0), {"batch": 2, "height/2": 8, "width/2": 8, "timesteps": 2}
    specs = bundle.specs("unet")[0]
    shapes = {spec.name: [sizes.get(dim, dim) for dim in spec.shape] for spec in specs}
    return [
        {spec.name: random.standard_normal(shapes[spec.name]).astype(spec.dtype) for spec in specs}
        for _ in range(count)
    ]


@pytest.mark.slow
def test_the_ranges_make_a_network_as_good_as_nncfs(bundle: Path) -> None:
    """The table holds every rounding of an activation that NNCF's own network has."""
    opened = Bundle.open(bundle)
    calls = inputs(opened)
    theirs, ours = by_nncf(opened, "unet", calls), read_graph("unet", opened.model("unet"))
    restore_convolutions(ours)
    paths = {*between(ours, "sample")}
    ranges = ranges_of(opened, "unet", calls)
    assert {*ranges} == paths
    assert compute_in_int8(ours, ranges) == len(paths)
    ends = [
        sorted(
            tuple(node.input_value(index).get_node().data.item() for index in (1, 2))
            for node in graph.get_ops()
            if node.get_type_name() == "FakeQuantize"
        )
        for graph in (ours, theirs)
    ]
    assert ends[0] == ends[1]
    exact = read_graph("unet", opened.model("unet"))
    networks = [
        core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}) for graph in (ours, theirs, exact)
    ]
    errors = np.zeros(2)
    for call in calls:
        *found, expected = (network(call)[0] for network in networks)
        errors += [np.abs(one - expected).mean() for one in found]
    assert 0 < errors[0] <= AS_GOOD * errors[1]


def test_it_is_calibrated_on_every_recorded_row(bundle: Path, checkpoint: Path) -> None:
    """With the recorded latents, once for each row of the guidance, and the time that is theirs."""
    opened = Bundle.open(bundle)
    reference = record(load(checkpoint), "a red apple")
    trajectory = reference.trajectory
    calls = calls_of_rows(opened, reference, "openvino")
    assert [*calls] == ["unet"]
    assert len(calls["unet"]) == len(trajectory.said)
    for call, x, t in zip(calls["unet"], trajectory.x[:-1], trajectory.t, strict=True):
        np.testing.assert_array_equal(call["sample"], np.concatenate([x, x]))
        assert call["timestep"].tolist() == [np.float32(t)] * 2
        assert [(name, array.dtype.name) for name, array in call.items()] == [
            (spec.name, spec.dtype) for spec in opened.specs("unet")[0]
        ]


@pytest.mark.slow(minutes=0.07)
def test_nncf_reports_nothing() -> None:
    program = """
import sys
from ldmrt.export.precision.calibrate import nncf
nncf()
from nncf.telemetry import wrapper
print("openvino_telemetry" in sys.modules, type(wrapper.telemetry).__name__)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout.split() == ["False", "MagicMock"], ran.stderr


def test_without_nncf_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.setattr("ldmrt.runtime.optional.is_installed", lambda name: False)
    with pytest.raises(LdmrtError, match=r"int8: NNCF is not installed\n  try: pip install 'ldmrt\[int8\]'"):
        calibrate.nncf()
