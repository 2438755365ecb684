"""What a training makes of the signals that come to one of its processes."""

import os
import signal

import pytest

from ldmrt.model.training.loop.processes import ALONE, Processes
from ldmrt.tools.console.training.launching import joined, launched
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
