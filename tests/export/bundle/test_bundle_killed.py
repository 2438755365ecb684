"""Wherever an export is killed, a whole bundle stands in its place afterwards, and the next export removes the rest."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldmrt.export.bundle_writer import export_bundle
from ldmrt.export.parity.store import store
from ldmrt.model import Checkpoint
from ldmrt.runtime import Bundle, Certificate, LdmrtError
from ldmrt.runtime.bundle.coverage import covered_files
from ldmrt.runtime.bundle.recording import Case, Recording, Trajectory
from ldmrt.runtime.files import swap, writing
from ldmrt.runtime.files.lock import bundle_lock
from ldmrt.runtime.parity.metrics import tensor_error

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
CALLS = ("replace", "rename", "link", "mkdir", "unlink", "rmdir", "chmod")


def killed_at(number: int, work: Callable[[], Any], calls: Sequence[str] = CALLS, *, exchanges: bool = True) -> bool:
    """Do work in another process that is killed before the given one of its calls that change a folder; False where
    it was done before that.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    called = 0
    writing._remove_abandoned_once.cache_clear()  # as in a process of its own

    def counting(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal called
            called += 1
            if called == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return counted

    try:
        for name in calls:
            setattr(os, name, counting(getattr(os, name)))
        swap._exchange = counting(swap._exchange if exchanges else lambda *_: False)
        work()
        os._exit(0)
    finally:
        os._exit(1)


def bundles(loaded: Checkpoint, folder: Path) -> Path:
    """A bundle with an engine and a certificate of sorts beside it."""
    out = folder / "out"
    list(export_bundle(loaded, out))
    (out / "engines" / "unet-sm89-0").mkdir(parents=True)
    (out / "engines" / "unet-sm89-0" / "engine.plan").write_bytes(b"a plan")
    return out


def graphs(bundle: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in bundle.glob("*/model.onnx")}


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("calls", [("rename",), pytest.param(CALLS, marks=pytest.mark.slow)])
def test_export_is_killed_at_every_call(
    loaded: Checkpoint, exported: list[str], tmp_path: Path, calls: Sequence[str], exchanges: bool
) -> None:
    out = bundles(loaded, tmp_path)
    old = graphs(out)
    torch.nn.init.zeros_(loaded.unet.conv_in.weight)
    number, seen = 1, set()
    while killed_at(number, lambda: list(export_bundle(loaded, out)), calls, exchanges=exchanges):
        opened = Bundle.open(out)  # puts back what stood there, where nothing does
        now = graphs(opened.path)
        assert {**now, "unet": old["unet"]} == old
        assert (out / "engines" / "unet-sm89-0" / "engine.plan").read_bytes() == b"a plan"
        seen.add(now["unet"] == old["unet"])
        if now["unet"] != old["unet"]:
            break
        number += 1
    assert True in seen
    if calls == CALLS:
        assert number > 20
        assert seen == {True, False}, "it was never killed after the swap"
    list(export_bundle(loaded, out))
    assert list(tmp_path.iterdir()) == [out]


def test_what_many_kills_leave_is_removed_by_the_next_export(
    loaded: Checkpoint, exported: list[str], tmp_path: Path
) -> None:
    out = bundles(loaded, tmp_path)
    torch.nn.init.zeros_(loaded.unet.conv_in.weight)
    for number in (9, 12, 15):
        assert killed_at(number, lambda: list(export_bundle(loaded, out)))
    assert len(list(tmp_path.iterdir())) > 1
    list(export_bundle(loaded, out))
    assert list(tmp_path.iterdir()) == [out]


def test_an_export_beside_another_is_refused(loaded: Checkpoint, exported: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    loop = export_bundle(loaded, out)
    next(loop)
    with pytest.raises(LdmrtError, match=f"is being changed by process {os.getpid()}"):
        list(export_bundle(loaded, out))
    list(loop)
    assert [done.reused for done in export_bundle(loaded, out)] == [True] * 4
    assert list(tmp_path.iterdir()) == [out]


def test_a_bundle_that_was_changed_during_the_export_stays(
    loaded: Checkpoint, exported: list[str], tmp_path: Path
) -> None:
    """By somebody who does not ask for the lock."""
    out = bundles(loaded, tmp_path)
    loop = export_bundle(loaded, out)
    next(loop)
    manifest = json.loads((out / "ldmrt.json").read_text()) | {"note": "mine"}
    (out / "ldmrt.json").write_text(json.dumps(manifest))
    with pytest.raises(LdmrtError, match="was changed by something else during the export\n  try: run the same"):
        list(loop)
    assert json.loads((out / "ldmrt.json").read_text()) == manifest
    assert list(tmp_path.iterdir()) == [out]


def test_a_certificate_is_not_stored_in_a_bundle_that_has_changed(
    loaded: Checkpoint, exported: list[str], tmp_path: Path
) -> None:
    opened = Bundle.open(bundles(loaded, tmp_path))
    opened.check_unchanged()
    loaded.scheduler["beta_end"] = 0.02
    list(export_bundle(loaded, opened.path))
    with pytest.raises(LdmrtError, match="was changed by something else meanwhile"):
        opened.check_unchanged()


def test_a_lock_outlives_nobody(loaded: Checkpoint, exported: list[str], tmp_path: Path) -> None:
    loop = export_bundle(loaded, tmp_path / "out")
    next(loop)
    loop.close()  # type: ignore[attr-defined]
    with bundle_lock(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../out", "a/b", "/etc", "x\n", "", "\x1b[31m", "é", "a" * 101, "con:"])
def test_names_of_controls_are_of_the_alphabet(
    loaded: Checkpoint, exported: list[str], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldmrt.export import bundle_writer

    parts = bundle_writer.components(loaded)
    named = {**parts, f"controlnet_{name}" if name else "": parts["unet"]}
    monkeypatch.setattr(bundle_writer, "components", lambda _: named)
    with pytest.raises(LdmrtError, match="unsupported name"):
        list(export_bundle(loaded, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_aside_of_a_living_process_is_not_taken(tmp_path: Path) -> None:
    aside = tmp_path / swap.temporary_name("out", swap.ASIDE)
    aside.mkdir()
    swap.recover(tmp_path / "out")
    assert list(tmp_path.iterdir()) == [aside]
    shutil.rmtree(aside)


def recorded(seed: int) -> Recording:
    """A reference of one row, unlike those of other seeds."""
    rng = np.random.default_rng(seed)
    x, image = rng.random((2, 1, 4, 8, 8), np.float32), rng.integers(0, 255, (1, 16, 16, 3), np.uint8)
    options = {"prompt": "a", "seed": seed, "width": 16, "height": 16, "steps": 1, "guidance": 1.0}
    case = Case("tokenizer", "prompts", {"texts": np.array(["a"])}, {"input_ids": np.array([[1]])})
    return Recording((case,), Trajectory(options, {}, np.zeros(1), x, x[:1], image), 1.0)


@pytest.mark.parametrize("seed", [0, 1])  # the same reference as before, and another
def test_storing_a_certificate_is_killed_at_every_call(
    loaded: Checkpoint, exported: list[str], tmp_path: Path, seed: int
) -> None:
    out = bundles(loaded, tmp_path)
    about = {"bundle": covered_files(Bundle.open(out).manifest), "manifest": ""}
    made = Certificate((tensor_error("unet", "x", "y", "z", np.ones(1), np.ones(1), 0.0),), (), (), about)
    store(Bundle.open(out), made, recorded(0))
    number = 1
    while killed_at(number, lambda: store(Bundle.open(out), made, recorded(seed))):
        assert Bundle.open(out).reference.trajectory.options["seed"] in (0, seed)
        number += 1
    assert number > 5
    assert Bundle.open(out).reference.trajectory.options["seed"] == seed
    left = [path.name for path in out.iterdir() if path.is_file()]
    named = Bundle.open(out).manifest["certificate"]["reference"]
    assert sorted(left) == sorted(["ldmrt.json", "model_index.json", named])
    assert list(tmp_path.iterdir()) == [out]
    assert [done.reused for done in export_bundle(loaded, out)] == [True] * 4
    assert Bundle.open(out).reference.trajectory.options["seed"] == seed, "the certificate is lost"
