"""Damaged engine folders are refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.store import PLAN, SIDECAR

from ...support.made_engines import put, recipe
from .test_engine_store import asked, assert_one_line_and_a_command, never_read


def spoil(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    stored = json.loads((path / SIDECAR).read_text())
    change(stored)
    (path / SIDECAR).write_text(json.dumps(stored))


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def moved(path: Path) -> None:
    """Out of the bundle, and a link in its place."""
    bundle = next(folder for folder in path.parents if folder.name == "bundle")
    outside = path.rename(bundle.with_name(f"outside-{path.name}"))
    path.symlink_to(outside)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / PLAN).write_bytes(b"a pl"), "engine.plan was cut off or changed"),
        (lambda f: (f / PLAN).unlink(), "has no engine.plan"),
        (lambda f: (f / SIDECAR).unlink(), "it was never finished"),
        (lambda f: (f / SIDECAR).write_text("{"), "cannot read its engine.json"),
        (lambda f: (f / SIDECAR).write_text("[]"), "cannot read its engine.json"),
        (lambda f: spoil(f, lambda s: s.update(schema=2)), "another schema"),
        (lambda f: spoil(f, lambda s: s["recipe"].update(target="sm120")), "was renamed or edited"),
        (lambda f: spoil(f, lambda s: s["recipe"].update(profile=[{"sample": [[1]]}])), "cannot read its engine.json"),
        (lambda f: spoil(f, lambda s: s.pop("plan")), "cannot read its engine.json"),
        *(
            (lambda f, change=change: spoil(f, change), "cannot read its engine.json")
            for change in (
                lambda s: s["recipe"].update(profile=[]),
                lambda s: s["recipe"].update(profile=[{}]),
                lambda s: s["recipe"].update(profile=[{"sample": [[3], [2], [1]]}]),
                lambda s: s["recipe"].update(profile=[{"sample": [[1.5], [2], [1e400]]}]),
                lambda s: s["recipe"].update(backend="cuda"),
                lambda s: s["recipe"].update(target="smX"),
                lambda s: s["recipe"].update(component="../../unet"),
                lambda s: s["recipe"].update(flags=None),
                lambda s: s["plan"].update(size=1e400),
                lambda s: s["plan"].update(size=-1),
                lambda s: s["plan"].update(size=True),
                lambda s: s["measured"].update(scratch="much"),
                lambda s: s.update(measured=3),
                lambda s: s.update(recipe=[]),
            )
        ),
        (lambda f: (f / SIDECAR).write_text("[" * 100000), "cannot read its engine.json"),
        (lambda f: (f / SIDECAR).write_bytes(b"\xff"), "cannot read its engine.json"),
        (lambda f: fifo(f / SIDECAR), "cannot read its engine.json"),
        (lambda f: fifo(f / PLAN), "has no engine.plan"),
        (lambda f: moved(f / PLAN), "is a link that leads out of the bundle"),
        (lambda f: moved(f / SIDECAR), "is a link that leads out of the bundle"),
        (lambda f: moved(f), "is a link that leads out of the bundle"),
        (lambda f: f.rename(f.with_name("unet-sm89-0123456789abcdef")), "was renamed or edited"),
    ],
)
def test_damage_is_refused(
    opened: Bundle, damage: Callable[[Path], Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(put(opened, recipe(opened)).folder)
    never_read(monkeypatch)
    with pytest.raises(LdmrtError, match=message) as refused:
        asked(opened)
    assert_one_line_and_a_command(refused.value, opened)
