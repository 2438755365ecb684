"""The command line, run in this process."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from ldmrt.tools.cli import main


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: object
    out: str
    err: str

    @property
    def error(self) -> str:
        """What went wrong: exactly one message, of one or two lines, and nothing on stdout."""
        errors = [line for line in self.err.splitlines() if line.lower().startswith("error: ")]
        assert len(errors) == 1, self.err
        assert "Traceback" not in self.err
        assert self.out == ""
        assert self.code == 2
        return errors[0]


Command = Callable[..., Ran]


@pytest.fixture
def ldmrt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Call it with a command line's words."""

    def run(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["ldmrt", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return Ran(left.value.code or 0, said.out, said.err)

    monkeypatch.setenv("COLUMNS", "200")  # rich wraps its tables to it
    return run
