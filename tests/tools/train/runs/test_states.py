"""The states that a run keeps: how many, which go, and what it goes on from."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
import torch

from ldmrt.model.training.loop.states.files import SUMS, TENSORS, VALUES, write_state
from ldmrt.model.training.loop.states.kept import OLD, STATES, newest_state, state_place
from ldmrt.runtime import LdmrtError

from .steps import Steps, at, fail, stopped_at


def names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / STATES).iterdir())


@pytest.mark.parametrize(("keep", "kept"), [(1, [8]), (2, [6, 8]), (3, [3, 6, 8]), (9, [3, 6, 8])])
def test_as_many_as_asked_for_are_kept(keep: int, kept: list[int], tmp_path: Path) -> None:
    Steps().walk(tmp_path, keep=keep)
    assert names(tmp_path) == [f"step-00000{step}" for step in kept]


def test_one_in_between_is_kept_beside_them_until_the_next(tmp_path: Path) -> None:
    seen = dict[int, list[str]]()

    def within(step: int) -> None:
        seen[step] = names(tmp_path) if step > 3 else []
        if step == 7:
            signal.raise_signal(signal.SIGUSR1)

    Steps(within).walk(tmp_path, keep=1)
    assert seen[7] == ["step-000006"]
    assert seen[8] == ["between-000007", "step-000006"]
    assert names(tmp_path) == ["step-000008"]


def test_a_run_that_fails_again_and_again_keeps_the_regular_ones(tmp_path: Path) -> None:
    """Such as one that diverges from step 6 on."""
    for step in (7, 8):
        run = Steps(at(step, fail(LdmrtError("train", "not finite"))))
        with pytest.raises(LdmrtError, match="not finite"):
            run.walk(tmp_path, resume=step > 7, keep=2)
    assert names(tmp_path) == ["between-000007", "step-000003", "step-000006"]


def test_fewer_are_kept_from_the_moment_of_resuming(tmp_path: Path) -> None:
    """Which makes room for the next."""
    Steps().walk(tmp_path)
    Steps().walk(tmp_path, resume=True, keep=1)
    assert names(tmp_path) == ["step-000008"]


def cut(state: Path) -> None:
    content = (state / TENSORS).read_bytes()
    (state / TENSORS).write_bytes(content[: len(content) // 2])


def flip(name: str) -> Callable[[Path], Any]:
    def damage(state: Path) -> None:
        content = bytearray((state / name).read_bytes())
        content[-3] ^= 1
        (state / name).write_bytes(content)

    return damage


@pytest.mark.parametrize(
    "damage",
    [cut, flip(VALUES), flip(TENSORS), flip(SUMS), *(lambda s, n=n: (s / n).unlink() for n in (VALUES, TENSORS, SUMS))],
)
def test_the_newest_that_is_whole_is_resumed(
    damage: Callable[[Path], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        Steps(at(7, lambda: signal.raise_signal(signal.SIGTERM))).walk(tmp_path)
    newest, before = state_place(tmp_path, 7, regular=False), state_place(tmp_path, 6)
    damage(newest)
    run = Steps()
    run.walk(tmp_path, resume=True)
    assert run.saved == [8]
    said = capsys.readouterr().err
    assert f"{newest} is damaged: " in said
    assert f"going on from {before}" in said
    assert names(tmp_path) == ["step-000003", "step-000006", "step-000008"]


def test_a_damaged_one_of_a_later_step_is_left_alone_until_it_is_passed(tmp_path: Path) -> None:
    """As a disk that cannot be read for a moment looks the same."""
    Steps().walk(tmp_path)
    for step in (6, 8):
        (state_place(tmp_path, step) / VALUES).write_text("")
    run, seen = Steps(), list[list[str]]()
    run.within = lambda step: seen.append(names(tmp_path))
    run.walk(tmp_path, resume=True, keep=1)
    assert run.saved == [6, 8]
    assert seen == [["step-000003", "step-000006", "step-000008"]] * 3 + [["step-000006", "step-000008"]] * 2
    assert names(tmp_path) == ["step-000008"]
    run = Steps()
    run.walk(tmp_path, resume=True)
    assert run.saved == []


def test_no_whole_state_is_one_error(tmp_path: Path) -> None:
    Steps().walk(tmp_path)
    for step in (3, 6, 8):
        (state_place(tmp_path, step) / SUMS).unlink()
    with pytest.raises(LdmrtError, match=r"cannot resume from .*step-000008; found .*SHA256SUMS") as caught:
        Steps().walk(tmp_path, resume=True)
    assert "another --out" in str(caught.value.hint)
    shutil.rmtree(tmp_path / STATES)
    with pytest.raises(LdmrtError, match="nothing to resume"):
        Steps().walk(tmp_path, resume=True)


def test_a_run_of_an_older_version_goes_on(tmp_path: Path) -> None:
    """Its only state is a file of `torch.save`, which the next one replaces."""
    (tmp_path / OLD).parent.mkdir()
    torch.save({"step": 5}, tmp_path / OLD)
    run = Steps()
    run.walk(tmp_path, resume=True)
    assert run.saved == [6, 8]
    assert not (tmp_path / OLD).exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize(("within", "newest"), [("files.write", 3), ("files.replace_folder", 3), ("kept.remove", 6)])
def test_a_process_that_is_killed_while_it_saves_leaves_whole_states(
    within: str, newest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was writing, or removing, has a name that no run finds, and the next save removes it."""
    stopped_at(tmp_path, 3)
    if not (child := os.fork()):
        monkeypatch.setattr(f"ldmrt.model.training.loop.states.{within}", lambda *_: os.kill(os.getpid(), SIGKILL))
        Steps().walk(tmp_path, resume=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -SIGKILL
    assert [name[:1] for name in names(tmp_path)].count(".") == 1
    state, damaged = newest_state(tmp_path)
    assert (state.name[-1], damaged) == (str(newest), {})
    Steps().walk(tmp_path, resume=True)
    assert names(tmp_path) == ["step-000006", "step-000008"]


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("error", [None, LdmrtError("train", "cannot resume")])
def test_an_interrupt_while_a_state_is_read_is_no_damage(error: LdmrtError | None, tmp_path: Path) -> None:
    """safetensors made it the error of an unknown shape, which was then said of the state."""
    stopped_at(tmp_path, 3)
    run = Steps()

    def resume(path: Path, change: object) -> dict[str, object]:
        signal.raise_signal(signal.SIGINT)
        run.step = 3
        if error:
            raise error
        return {}

    run.resume = resume  # type: ignore[method-assign,assignment]
    with pytest.raises(KeyboardInterrupt):
        run.walk(tmp_path, resume=True)
    assert (run.step, run.saved) == (3, [])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_state_is_replaced_by_one_of_the_same_step(tmp_path: Path) -> None:
    place = state_place(tmp_path, 3)
    for value in (1, 2):
        write_state(place, {"value": value})
    assert f'"value": {2}' in (place / VALUES).read_text()
    assert names(tmp_path) == ["step-000003"]
    assert place.stat().st_mode & 0o777 == 0o755
