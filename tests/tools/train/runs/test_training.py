"""A training run, watched: signals, failing steps, full disks and the lock of its folder."""

import errno
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ldmrt.model.training.log import read_log
from ldmrt.model.training.loop.states.files import write_state
from ldmrt.model.training.loop.states.kept import saved_states, state_place
from ldmrt.runtime import LdmrtError
from ldmrt.tools.console.run_lock import locked
from ldmrt.tools.console.training.records.log import LOG
from ldmrt.tools.console.training.signals import STOPPING, nothing_to_save

from .steps import Steps, at, fail, stopped_at


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("name", STOPPING)
def test_a_signal_to_stop_ends_the_step_first(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    run = Steps(at(5, lambda: signal.raise_signal(number)))
    with pytest.raises(KeyboardInterrupt if name == "SIGINT" else SystemExit) as caught:
        run.walk(tmp_path)
    assert (run.saved, run.kept) == ([3, 5], [3])  # every third step, and the one in which it was stopped
    assert name == "SIGINT" or caught.value.args == (128 + number,)
    assert "stopped at step 5; go on with --resume" in capsys.readouterr().err
    assert signal.getsignal(number) is before


def test_a_signal_to_save_goes_on(tmp_path: Path) -> None:
    run = Steps(at(5, lambda: signal.raise_signal(signal.SIGUSR1)))
    run.walk(tmp_path)
    assert (run.saved, run.kept) == ([3, 5, 6, 8], [3, 6, 8])
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_signal_in_the_last_step_loses_nothing(tmp_path: Path) -> None:
    run = Steps(at(8, lambda: signal.raise_signal(signal.SIGTERM)))
    run.walk(tmp_path)
    assert (run.saved, run.kept) == ([3, 6, 8], [3, 6, 8])


def test_what_is_ignored_stays_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = Steps(at(5, lambda: signal.raise_signal(signal.SIGHUP)))
        run.walk(tmp_path)
        assert run.step == 8
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_failing_step_saves_the_last_whole_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Steps(at(5, fail(LdmrtError("train", "step 4 is not finite"))))
    with pytest.raises(LdmrtError, match="not finite"):
        run.walk(tmp_path)
    assert run.saved == [3, 4]
    assert "saved the state of step 4; go on with --resume" in capsys.readouterr().err


@pytest.mark.parametrize(("step", "torn"), [(1, False), (4, False), (5, True)])
def test_nothing_new_is_not_saved(step: int, torn: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Steps(at(step, fail(LdmrtError("train", "not finite"))))
    run.torn = torn  # half of the weights of the next step
    with pytest.raises(LdmrtError, match="not finite"):
        run.walk(tmp_path)
    assert run.saved == ([3] if step > 3 else [])
    assert "--resume" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: 9 bytes"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory."),
    ],
)
def test_too_little_memory_saves_and_says_what_may_fit(error: Exception, tmp_path: Path) -> None:
    run = Steps(at(5, fail(error)))
    with pytest.raises(
        LdmrtError, match=r"memory for 6 samples at once.*\n  try: --accumulate 2, --checkpointing or --precision bf16"
    ):
        run.walk(tmp_path)
    assert run.saved == [3, 4]


def test_any_failing_step_saves_the_last_whole_one(tmp_path: Path) -> None:
    run = Steps(at(5, fail(ValueError("a fault of ours"))))
    with pytest.raises(ValueError, match="a fault of ours"):
        run.walk(tmp_path)
    assert run.saved == [3, 4]


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_signal_to_save_is_outlived_where_nothing_is_to_be_saved(handler: Any) -> None:
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with nothing_to_save():
            signal.raise_signal(signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) is handler
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_resumed_run_keeps_its_last_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Steps()
    stopped_at(tmp_path, 5)
    run.walk(tmp_path, resume=True, change=["steps"])
    assert run.saved == run.kept == [6, 8]
    assert "steps is now after step 5, and was before" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [3, 5])
def test_a_run_past_its_steps_says_so(steps: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Steps()
    run.settings = replace(run.settings, steps=steps)
    stopped_at(tmp_path, 5)
    run.walk(tmp_path, resume=True)
    said = capsys.readouterr().err
    assert f"done already: 5 of {steps} steps; --steps above 5 with --change steps continues" in said
    assert " min" not in said
    assert (run.saved, run.kept) == ([], [5])  # it may have been killed before it was kept


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_takes_no_state_is_one_error(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_state(before := state_place(tmp_path, 0), {})
    run = Steps()
    tried = list[int]()
    monkeypatch.setattr(
        run, "save", lambda path: tried.append(run.step) or fail(OSError(number, os.strerror(number)))()
    )
    with pytest.raises(LdmrtError, match=rf"cannot save step 3 .*; {before} is kept") as caught:
        run.walk(tmp_path)
    assert os.strerror(number) in caught.value.problem
    assert "expected 3 MB; found" in str(caught.value)
    assert "MB free" in str(caught.value)
    assert tried == [3]  # not once more
    assert saved_states(tmp_path) == [before]


def test_skipped_images_are_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Steps()
    run.within = lambda step: run.skipped.setdefault(("a.png",) if step < 5 else ("b.png",), f"in step {step}")
    run.walk(tmp_path)
    said = capsys.readouterr().err
    assert (said.count("skipped: in step 1"), said.count("skipped: in step 5"), said.count("skipped:")) == (1, 1, 2)
    assert "8/8 loss 0.5000, 9 images/s, 2 skipped" in said


def test_the_log_has_no_step_twice(tmp_path: Path) -> None:
    """It has a line at each save too, and at the stop; steps that are taken again are not logged again."""
    stopped = Steps(at(7, lambda: signal.raise_signal(signal.SIGTERM)))
    with pytest.raises(SystemExit):
        stopped.walk(tmp_path)
    assert [line["step"] for line in read_log(tmp_path / LOG)] == [2, 3, 4, 6, 7]
    stopped_at(tmp_path, 5)
    Steps().walk(tmp_path, resume=True)  # from step 5, as if it had been killed before it could save
    assert [line["step"] for line in read_log(tmp_path / LOG)] == [2, 3, 4, 6, 8]
    Steps().walk(tmp_path)
    lines = read_log(tmp_path / LOG)
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 8]
    assert [line["samples"] for line in lines] == [12, 18, 24, 36, 48]


def test_the_steps_before_a_failing_one_are_logged(tmp_path: Path) -> None:
    run = Steps(at(8, fail(LdmrtError("train", "step 7 is not finite"))))
    with pytest.raises(LdmrtError, match="not finite"):
        run.walk(tmp_path)
    assert [line["step"] for line in read_log(tmp_path / LOG)] == [2, 3, 4, 6, 7]


def test_a_folder_has_one_training_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "a" / "run"
    with locked(out):
        assert f"process {os.getpid()} on {platform.node()}" in (out / "training" / "lock").read_text()
        with pytest.raises(LdmrtError, match=f"in use by process {os.getpid()} on") as caught, locked(out):
            pass
        assert "another --out" in str(caught.value)
        with locked(tmp_path / "b"):
            (tmp_path / "b" / "training" / "file").write_text("kept")
    assert not out.exists()  # it was made, and nothing was written to it
    assert (tmp_path / "b" / "training" / "file").read_text() == "kept"
    with locked(out):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    code = "import sys, time; from ldmrt.tools.console.run_lock import locked; from pathlib import Path\n"
    code += "with locked(Path(sys.argv[1])): print('locked', flush=True); time.sleep(600)"
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "locked\n"
        with pytest.raises(LdmrtError, match=f"in use by process {owner.pid} on"), locked(tmp_path):
            pass
    finally:
        owner.kill()
        owner.communicate()
    assert (tmp_path / "training" / "lock").exists()
    with locked(tmp_path):
        pass
    assert not (tmp_path / "training" / "lock").exists()


def test_the_lock_of_another_host_stays_where_the_system_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    lock = tmp_path / "training" / "lock"
    lock.parent.mkdir()
    lock.write_text("00000000-1-1\nprocess 1 on elsewhere\n")
    with pytest.raises(LdmrtError, match="process 1 on elsewhere") as caught, locked(tmp_path):
        pass
    assert f"another --out, or remove {lock}" in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "\n\n", "00000000-1", "no owner\nprocess 1 on elsewhere"])
def test_a_damaged_lock_without_owner_is_taken_over(content: str, tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "lock").write_text(content)
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LdmrtError, match="cannot write to"), locked(tmp_path / "file" / "run"):
        pass


def _count(out: Path, file: Path, times: int) -> None:
    for _ in range(times):
        while True:
            try:
                with locked(out):
                    file.write_text(str(int(file.read_text()) + 1))
                break
            except LdmrtError:
                continue


@pytest.mark.slow
def test_the_lock_holds_against_several(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    start = multiprocessing.get_context("spawn").Process
    several = [start(target=_count, args=(tmp_path / "run", tmp_path / "count", 40)) for _ in range(3)]
    for process in several:
        process.start()
    for process in several:
        process.join(60)
    assert (tmp_path / "count").read_text() == "120"
