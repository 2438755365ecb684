"""The benchmark of training steps: that it compares like with like and reports it. What it measures is no test."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldmrt.tools.benchmarks.speed import training
from ldmrt.tools.benchmarks.speed.training import GOALS, bench, contestants


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """What the benchmark sets for a whole process, put back."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow(minutes=0.06)
@pytest.mark.oracle
def test_contestants_begin_alike() -> None:
    """The first losses are of the same weights and images, with noise of their own: about the noise's variance of 1."""
    runs = contestants(8)
    first = {name: next(run) for name, run in runs.items()}
    assert all(abs(loss / first["ldmrt"] - 1) < 0.2 for loss in first.values()), first


@pytest.mark.oracle
@pytest.mark.slow
def test_numbers_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "IMAGES", 8)
    words = ["--batch", "4", "--steps", "1", "--rounds", "2", "--json", str(tmp_path / "out.json")]
    bench(words, standalone_mode=False)
    written = json.loads((tmp_path / "out.json").read_text())
    assert set(written["seconds"]) == {"ldmrt", *GOALS}
    shown = capsys.readouterr().out
    for name, found in written["ratios"].items():
        pairs = zip(written["seconds"][name], written["seconds"]["ldmrt"], strict=True)
        assert found == [a / b for a, b in pairs]
        assert written["medians"][name] == pytest.approx(sum(found) / 2)
        assert f"diffusers, {name}: {written['medians'][name]:.2f} of it" in shown
    assert {"ldmrt", "torch", "diffusers", "cpu", "threads", "load", "batch"} <= written["about"].keys()
