"""`--threads`, the same option wherever ONNX Runtime draws."""

from pathlib import Path
from typing import Any

import pytest

from ldmrt.runtime import LdmrtError

COMMANDS = ("generate BUNDLE x -o OUT", "bench BUNDLE", "evaluate BUNDLE --data OUT")


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize("threads", [None, 0, 3])
def test_threads_reach_the_engines(
    ldmrt: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, threads: int | None
) -> None:
    asked = []

    def open_engines(bundle: Any, backend: str, settings: Any) -> None:
        asked.append(settings.threads)
        raise LdmrtError("test", "far enough")

    monkeypatch.setattr("ldmrt.runtime.pipeline.opening.open_engines", open_engines)
    places = {"BUNDLE": bundle, "OUT": tmp_path / "out.png"}
    given = [] if threads is None else ["--threads", threads]
    assert "far enough" in ldmrt(*(places.get(word, word) for word in words.split()), *given).error
    assert asked == [threads or 0]


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize("threads", ["-1", "many", "1.5"])
def test_what_is_no_number_of_threads(ldmrt: Any, bundle: Path, words: str, threads: str) -> None:
    assert (
        "--threads"
        in ldmrt(*(bundle if word == "BUNDLE" else word for word in words.split()), "--threads", threads).error
    )
