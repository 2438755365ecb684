"""The check of a GPU, where none is: rows that fail, rows that measure, and what is written of them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.parity.tolerances import COMPONENT
from ldmrt.tools.benchmarks import gpu_check, gpu_rows
from ldmrt.tools.benchmarks.gpu_check import (
    ON_CPU,
    ROWS,
    Outcome,
    Row,
    child,
    measure,
    missing,
    place_of,
    run_group,
    table,
)
from ldmrt.tools.benchmarks.gpu_rows import MEASURES, Setting

ROOT = Path(__file__).parents[3]
LIMIT = COMPONENT["fp32"].limit


def answer(row: Row, limit: float) -> Outcome:
    """A runner that fails at `bad`."""
    return (
        Outcome(row.name, row.title, why="it broke")
        if row.name == "bad"
        else Outcome(row.name, row.title, {"off": 0.0})
    )


def test_rows_name_what_measures_them() -> None:
    assert {row.name for row in (*ROWS, *ON_CPU)} == set(MEASURES)
    for rows in (ROWS, ON_CPU):
        names = [row.name for row in rows]
        assert all(name in names[: names.index(row.name)] for row in rows for name in row.after)
        assert sum(row.limit for row in rows if row.name in ("reference", "eager", "compile")) < 450  # the budget


def test_failures_are_rows() -> None:
    rows = (
        Row("bad", "fails", ()),
        Row("later", "needs the one that failed", (), ("bad",)),
        Row("none", "needs what is not there", ("os", "no_such_package", "no_such.package")),
        Row("good", "goes well", ("json",)),
    )
    found = list(measure(rows, answer, 100))
    assert [one.why for one in found] == [
        "it broke", "it comes after bad, which failed", "not installed: no_such_package, no_such.package", "",
    ]  # fmt: skip
    assert found[-1].values == {"off": 0.0}


def test_the_budget_is_for_all() -> None:
    limits = []

    def slow(row: Row, limit: float) -> Outcome:
        limits.append(limit)
        return Outcome(row.name, row.title)

    assert [one.why for one in measure([Row("a", "", ()), Row("b", "", (), limit=5)], slow, 20)] == ["", ""]
    assert limits[0] == pytest.approx(20, abs=1)
    assert limits[1] == 5
    assert [one.why for one in measure([Row("a", "", ())], slow, 0)] == ["no time was left"]


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("print('noise'); print('{\"off\": 1.5}')", ({"off": 1.5}, "")),
        ("import sys; sys.exit('error: no engine')", ({}, "no engine (exit code 1)")),
        ("import os; os.kill(os.getpid(), 11)", ({}, "it said nothing (exit code -11)")),
        ("print('hello')", ({}, "it measured nothing")),
        ("", ({}, "it measured nothing")),
        ("import time; time.sleep(60)", ({}, "stopped after 3 s")),
    ],
)
def test_whatever_a_process_does(program: str, expected: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "command_of", lambda row, options: [sys.executable, "-S", "-c", program])
    found = child([])(Row("x", "X", ()), 3.0)
    assert (found.values, found.why) == expected


def test_nothing_is_left_of_a_process(tmp_path: Path) -> None:
    """Not what it has started, either."""
    note = tmp_path / "pid"
    inner = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    program = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-S', '-c', {inner!r}]); time.sleep(60)"
    with open(os.devnull, "w") as nothing:
        assert run_group([sys.executable, "-S", "-c", program], 3, nothing, nothing) is None
    pid = int(note.read_text())
    for _ in range(50):
        if not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text():
            return
        time.sleep(0.1)
    pytest.fail("its helper still runs")


def test_table() -> None:
    rows = [Outcome("a", "one way", {"rows_per_s": 61.234, "seconds": 0.5, "off": 2e-3, "build_s": 3.0}),
            Outcome("b", "another", why="not installed: tensorrt")]  # fmt: skip
    head, first, second = table(rows, 50).splitlines()
    assert head.split() == ["rows/s", "50", "steps,", "s", "off", "by"]
    assert first.split() == ["one", "way", "61.2", "0.5", "0.002", "build_s", "3"]
    assert second.endswith("not installed: tensorrt")
    assert first.index("build_s") == second.index("not installed")


def test_where_the_numbers_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OUT", raising=False)
    assert place_of(None) == Path("tools/benchmarks/results/gpu-check.json")
    monkeypatch.setenv("OUT", "/some/where")
    assert place_of(None) == Path("/some/where/gpu-check.json")
    assert place_of(Path("here.json")) == Path("here.json")


def no_driver() -> str:
    raise LdmrtError("gpu", "there is no NVIDIA driver here", hint="a machine with a GPU")


def test_without_a_gpu_it_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("ldmrt.runtime.backends.gpu.compute_capability", no_driver)
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    with pytest.raises(SystemExit) as left:
        gpu_check.main()
    said = capsys.readouterr()
    assert left.value.code == 2
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line == "error: gpu: there is no NVIDIA driver here; with --device cpu it measures without a GPU"


def test_the_script_runs_from_anywhere(tmp_path: Path) -> None:
    ran = subprocess.run(["bash", ROOT / "tools/gpu_check.sh", "--help"], cwd=tmp_path, capture_output=True, text=True,
                         env={**os.environ, "PYTHON": sys.executable})  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "--budget" in ran.stdout


def test_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "child", lambda options: answer)
    out = tmp_path / "numbers.json"
    ran = CliRunner().invoke(gpu_check.gpu_check, ["--device", "cpu", "--row", "reference", "--json", str(out)])
    assert ran.exit_code == 0, ran.output
    written = json.loads(out.read_text())
    assert written["rows"][0]["values"] == {"off": 0.0}
    assert {"gpu", "cpu", "versions", "model", "device", "steps"} == set(written["about"])
    assert missing(ON_CPU[0]) == []


@pytest.fixture
def setting(checkpoint: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """The tiny model, its bundle made."""
    monkeypatch.setattr(gpu_rows, "REPEATS", 1)
    (tmp_path / "bundle").symlink_to(bundle)
    return Setting(str(checkpoint), "cpu", 4, tmp_path)


def test_rows_of_the_cpu(setting: Setting) -> None:
    """Each measures, and the same U-Net gives the same numbers whoever runs it."""
    assert MEASURES["reference"](setting)["largest"] > 0
    for name in ("eager", "onnxruntime"):
        values = MEASURES[name](setting)
        assert values["off"] <= LIMIT, name
        assert values["rows_per_s"] > 0
        assert values["seconds"] > 0


def test_the_loop_of_torch_is_the_runtimes(setting: Setting) -> None:
    """Else its speed would be that of something else."""
    import torch

    from ldmrt.runtime import open as open_bundle
    from ldmrt.tools.benchmarks.gpu_torch import GUIDANCE, PROMPT, SCHEDULER, TorchModel

    model = TorchModel.make(setting.model, "cpu", torch.float32, setting.steps)
    noise = torch.randn(model.latent, generator=torch.Generator().manual_seed(0)).numpy()
    pipeline = open_bundle(setting.bundle, "onnxruntime", check=False)
    ours = pipeline(PROMPT, num_inference_steps=4, guidance_scale=GUIDANCE, scheduler=SCHEDULER, latents=noise)
    found = model.walk(model.context(), 4).numpy()
    limit = LIMIT * (2 * GUIDANCE - 1) * 4  # guidance multiplies what the networks may differ by, and rows add it up
    assert np.abs(found - ours.latents).max() / np.abs(ours.latents).max() <= limit
    # one grey level, where a value falls on the other side of a half
    assert np.abs(model.image()[0].transpose(1, 2, 0).astype(int) - ours.pixels[0]).max() <= 1


def test_what_is_off_is_seen(setting: Setting) -> None:
    assert gpu_rows.parity(setting, lambda **_: None) is None
    MEASURES["reference"](setting)
    stored = np.load(setting.work / gpu_rows.PARITY)
    assert gpu_rows.parity(setting, lambda **_: stored["out_sample"]) == 0
    assert gpu_rows.parity(setting, lambda **_: stored["out_sample"] * 1.01) == pytest.approx(0.01, rel=1e-3)
