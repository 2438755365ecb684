"""The benchmark of the samplers: that it compares like with like and reports it. What it measures is no test."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldmrt.runtime import SCHEDULERS, plan_from_config
from ldmrt.runtime.samplers.config import CONFIG
from ldmrt.tools.benchmarks.speed import samplers
from ldmrt.tools.benchmarks.speed.samplers import RowCost, bench, contestants

STEPPED = [name for name in SCHEDULERS if not name.startswith("score")]  # the others have no `step` in diffusers
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # inside diffusers


@pytest.fixture
def settings() -> Iterator[None]:
    """What the benchmark sets for a whole process, put back."""
    import diffusers
    import torch

    threads, verbosity = torch.get_num_threads(), diffusers.utils.logging.get_verbosity()
    yield
    torch.set_num_threads(threads)
    diffusers.utils.logging.set_verbosity(verbosity)


@pytest.mark.oracle
@pytest.mark.usefixtures("settings")
def test_numbers_of_every_scheduler(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(samplers, "SHAPE", (1, 4, 8, 8))
    bench(["--steps", "4", "--repeats", "1", "--json", str(tmp_path / "out.json")], standalone_mode=False)
    written = json.loads((tmp_path / "out.json").read_text())
    assert [line["name"] for line in written["microseconds"]] == STEPPED
    costs = [RowCost(**line) for line in written["microseconds"]]
    assert all(min(cost.ours, cost.step, cost.scaled) > 0 for cost in costs)
    assert {"ldmrt", "numpy", "torch", "diffusers", "python", "cpu", "threads", "load", "latents"} <= written[
        "about"
    ].keys()
    shown = capsys.readouterr().out
    for cost in costs:
        (line,) = (line for line in shown.splitlines() if line.startswith(f"│ {cost.name} "))
        assert f"{cost.ours / cost.step:.2f}" in line
        assert f"{cost.ours / cost.scaled:.2f}" in line
    assert f"{sum(cost.ratio <= 1 / 5 for cost in costs)} of {len(costs)} at most 0.2" in shown


@pytest.mark.oracle
@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("name", [*STEPPED, "dpmpp_2m_karras"])
def test_rows_are_as_many_as_calls_of_step(name: str) -> None:
    with contestants(name, 7) as runs:
        assert [rows for _, rows in runs] == [plan_from_config(CONFIG, 7, name=name).rows] * 3


def main(*words: str) -> "subprocess.CompletedProcess[str]":
    program = (
        "import sys; sys.modules['diffusers'] = None\nfrom ldmrt.tools.benchmarks.speed.samplers import main; main()"
    )
    return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "error: scheduler: unknown scheduler 'nonsense'; expected ddim"),
        (["ddim"], "error: sampler_speed: diffusers is not installed"),
    ],
)
def test_one_clear_message(words: list[str], message: str) -> None:
    ran = main(*words)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith(message)
    assert "Traceback" not in ran.stderr
