"""What long work says of itself, on a terminal and in a log."""

import io

import pytest
from rich.console import Console

from ldmrt.tools.console import progress


@pytest.mark.parametrize("every", [0.0, 60.0])
def test_a_log_is_told_at_intervals(every: float, monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=log))
    monkeypatch.setattr(progress, "LOG_EVERY", every)
    with progress.telling("reading") as tell:
        tell("unet: its error in fp16 [1/2]")
        tell("vae_decoder: its error in fp16")
    expected = ["unet: its error in fp16 [1/2]", "vae_decoder: its error in fp16"] if every == 0 else []
    assert log.getvalue().splitlines() == expected
