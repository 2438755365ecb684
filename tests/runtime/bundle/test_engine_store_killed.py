"""Wherever the writing of an engine is killed, it is there whole or it is not there."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.store import PLAN, SIDECAR, EngineFile, engines

from ...support.made_engines import put, recipe


@pytest.fixture
def opened(bundle: Path, tmp_path: Path) -> Bundle:
    return Bundle.open(Path(shutil.copytree(bundle, tmp_path / "bundle")))


def killed_at(line: int, work: Callable[[], Any]) -> bool:
    """Do work in another process that is killed before the given line of ours that it runs; False where it was done
    before that.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    ran = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal ran
        if frame.f_globals.get("__name__") not in ("ldmrt.runtime.bundle.engines.store", "ldmrt.runtime.files.writing"):
            return None
        ran += event == "line"
        if ran == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    work()
    os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize(("old", "every"), [(None, 5), (b"another plan", 2)])
def test_a_write_that_is_killed_anywhere(opened: Bundle, old: bytes | None, every: int) -> None:
    """Never is there an engine of other bytes than its sidecar says, and the next write ends well."""
    made, line = recipe(opened), 1
    while killed_at(line, lambda: put(opened, made)):
        for one in engines(opened.path):
            assert isinstance(one, LdmrtError) or one.read(opened) in (b"a plan", old)
        if old is not None:
            put(opened, made, old)
        line += every
    assert line > 30
    put(opened, made)
    (found,) = engines(opened.path)
    assert isinstance(found, EngineFile)
    assert found.read(opened) == b"a plan"
    assert {path.name for path in found.folder.iterdir()} == {PLAN, SIDECAR}
