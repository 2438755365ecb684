"""The benchmark of precisions: that it runs one network in each. What it measures is no test."""

import json
from pathlib import Path

import pytest

pytest.importorskip("nncf")

from ldmrt.runtime.backends.openvino.devices import precisions
from ldmrt.tools.benchmarks.precisions import PRECISIONS, measure


@pytest.mark.slow(minutes=0.12)
def test_a_network_runs_in_each_precision(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    measure([str(bundle), "--side", "16", "--calls", "2", "--json", str(out)], standalone_mode=False)
    written, able = json.loads(out.read_text()), [name for name in PRECISIONS if name in precisions("CPU")]
    assert [*written["wall"]] == able
    assert all(len(taken) == 2 for taken in written["wall"].values())
    errors = [written["errors"][name] for name in able]
    assert errors == sorted(errors)  # each is narrower than the one before
    assert (errors[0], errors[-1] > 1e-3) == (0.0, True)
    assert capsys.readouterr().out.count("of float32's time") == len(able)
