"""What a training makes of the signals that come to one of its processes."""

import os
import signal
import threading
import time

import click
import pytest

from ldmrt.model.training.loop.processes import ALONE, Processes
from ldmrt.runtime.errors import LdmrtError
from ldmrt.tools.console.training import launching
from ldmrt.tools.console.training.launching import first_prints, joined, launched
from ldmrt.tools.console.training.signals import end_by, listening


class Interrupted(Processes):
    """Gets a signal while the processes agree."""

    def largest(self, *numbers: int) -> tuple[int, ...]:
        found = super().largest(*numbers)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        return found


def test_a_signal_that_comes_while_processes_agree_is_for_the_next_time() -> None:
    with listening() as signals:
        assert signals.agreed(ALONE) == (0, False)
        assert signals.agreed(Interrupted()) == (0, False)
        assert signals.agreed(ALONE) == (signal.SIGTERM, True)
        assert signals.agreed(ALONE) == (signal.SIGTERM, False)


class Second(Processes):
    """Is one of two processes, of which the other has no signal."""

    def largest(self, *numbers: int) -> tuple[int, ...]:
        return numbers


def test_the_end_of_the_launcher_is_a_signal_to_stop() -> None:
    with listening() as signals:
        assert signals.agreed(Second(1, 2)) == (0, False)
        signals.parent = -1
        assert signals.agreed(ALONE) == (0, False)  # alone, whoever started it may end
        assert signals.agreed(Second(1, 2)) == (signal.SIGTERM, False)


def test_signals_end_a_process_as_they_do_elsewhere() -> None:
    with pytest.raises(KeyboardInterrupt):
        end_by(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        end_by(signal.SIGTERM)
    assert ended.value.code == 143


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ({}, 0), ({"WORLD_SIZE": "4"}, 0), ({"WORLD_SIZE": "4", "RANK": "1"}, 0),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, 0),
        ({"WORLD_SIZE": "x", "RANK": "0", "LOCAL_RANK": "0"}, 0),
        ({"WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1"}, 4),
    ],
)  # fmt: skip
def test_a_launcher_is_known_by_its_environment(
    values: dict[str, str], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert launched() == count
    if not count:
        with joined(1, "cpu") as group:
            assert group is None


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process the second of two that a launcher started."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launching, "PATIENCE", 0.2)


def fail_by(error: Exception) -> None:
    with first_prints():
        os.write(2, b"hidden")
        raise error


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize(("together", "waits", "said"), [(False, True, "said"), (True, False, "")])
def test_others_give_the_first_time_to_print_an_error(
    together: bool, waits: bool, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sharing = threading.Event()
    monkeypatch.setattr(launching, "_sharing", sharing)
    if together:
        sharing.set()
    began = time.monotonic()
    with pytest.raises(LdmrtError):
        fail_by(LdmrtError("train", "an error"))
    assert (time.monotonic() - began >= launching.PATIENCE) is waits
    os.write(2, b"said")  # what reports the error
    assert capfd.readouterr().err == said


@pytest.mark.usefixtures("second")
def test_help_of_others_ends_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.exceptions.Exit), first_prints():
        raise click.exceptions.Exit
    os.write(2, b"hidden")
    assert capfd.readouterr().err == ""
