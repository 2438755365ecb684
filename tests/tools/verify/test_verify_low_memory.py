"""Verification with one module's weights of the checkpoint in memory at a time."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldmrt.export.components.table import components, example
from ldmrt.export.precision.streaming import streamed
from ldmrt.model import load
from ldmrt.model.library.t5 import T5
from ldmrt.runtime import Bundle
from ldmrt.runtime.bundle.recording import Recording
from ldmrt.tools.console.verification.measure import record_checkpoint
from ldmrt.tools.console.verification.runnable import short_of_memory
from ldmrt.tools.options.checkpoint import CheckpointOptions

from ...support.fakes.wide import wide_checkpoint
from ...support.families.flux import save_flux
from ...support.families.pixart import save_pixart
from ...support.families.stable_diffusion_3 import EXPORTED, save_sd3

SAVED = {"sd3": (EXPORTED, save_sd3), "flux": ("dev", save_flux), "pixart": ("sigma", save_pixart)}


def reading(checkpoint: Path) -> CheckpointOptions:
    return CheckpointOptions(str(checkpoint), None, None, None, {}, {}, (), (), None, {}, None, {})


def numbers(recording: Recording) -> list[np.ndarray]:
    """All that PyTorch computed, in its order."""
    trajectory = recording.trajectory
    outputs = [array for case in recording.cases for array in case.outputs.values()]
    return [*outputs, trajectory.x, trajectory.said, trajectory.images]


@pytest.mark.slow(minutes=0.13)
@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32"])
def test_numbers_are_those_of_weights_in_float32(stored: str, bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    load(checkpoint).save(tmp_path, getattr(torch, stored))
    opened = Bundle.open(bundle, check=False)
    whole, streamed = (
        record_checkpoint(opened, reading(tmp_path), "a pear", low_memory=low_memory)[1] for low_memory in (False, True)
    )
    pairs = list(zip(numbers(whole), numbers(streamed), strict=True))
    assert len(pairs) > 15
    assert all(np.array_equal(one, other) for one, other in pairs)


@pytest.mark.slow(minutes=0.06)
def test_certificate_says_it(ldmrt: Any, changed: Path, checkpoint: Path) -> None:
    ran = ldmrt("verify", changed, "--against", checkpoint, "--backend", "onnxruntime", "--low-memory", "--store")
    assert ran.code == 0, ran.err
    certificate = Bundle.open(changed).certificate
    assert certificate is not None
    assert certificate.about["low_memory"] is True
    assert "figures within tolerance on onnxruntime, in low memory" in ldmrt("inspect", changed).out
    assert ldmrt("verify", changed, "--against", checkpoint, "--backend", "onnxruntime", "--store").code == 0
    assert "in low memory" not in ldmrt("inspect", changed).out


@pytest.mark.slow(minutes=0.13)
@pytest.mark.parametrize(
    ("asked", "free", "low"), [((), None, False), (("--low-memory",), None, True), ((), 10**3, True)]
)
def test_export_says_it(
    asked: tuple[str, ...], free: int | None, low: bool, ldmrt: Any, checkpoint: Path, shared_exports: None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("ldmrt.runtime.host.free_memory", lambda: free)
    assert ldmrt("export", checkpoint, tmp_path / "bundle", *asked).code == 0
    certificate = Bundle.open(tmp_path / "bundle").certificate
    assert certificate is not None
    assert certificate.about.get("low_memory", False) is low


@pytest.mark.slow(minutes=0.07)
def test_bisect_and_a_stored_recording(ldmrt: Any, certified: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Modules are compared with low memory too; what is replayed is no new certificate of low memory."""
    against = ("verify", certified, "--against", checkpoint, "--bisect", "unet", "--low-memory")
    ran = ldmrt(*against)
    assert (ran.code, "row 10 of 20" in ran.out) == (0, True), ran.err
    assert ldmrt("verify", certified, "--low-memory", "--json", tmp_path / "x.json").code == 0
    assert "low_memory" not in json.loads((tmp_path / "x.json").read_text())["about"]


@pytest.mark.parametrize("kind", ["sd3", "flux", "pixart"])
@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_t5_computes_in_float32_too(stored: str, kind: str, tmp_path: Path) -> None:
    """transformers rounds what T5's feed-forward blocks take to the precision in which their weights are stored."""
    name, save = SAVED[kind]
    load(save(name, tmp_path / "whole")).save(tmp_path / "stored", getattr(torch, stored))
    whole, kept = (load(tmp_path / "stored", dtype={"": dtype}) for dtype in (torch.float32, None))
    part = next(name for name, one in whole.text_encoders.items() if type(one).__name__ == T5)
    component = components(whole)[part]
    given = example(component, {"batch": 2})
    expected = component.engine()(**given)
    with streamed(kept) as parts:
        found = parts[part].engine()(**given)
    assert all(np.array_equal(array, found[name]) for name, array in expected.items())


@pytest.mark.parametrize(("free", "low"), [(None, False), (10**12, False), (10**3, True)])
def test_it_is_chosen_where_memory_is_short(
    free: int | None, low: bool, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldmrt.runtime.host.free_memory", lambda: free)
    assert short_of_memory(Bundle.open(bundle, check=False)) is low


# In a process of its own: memory that earlier tests have freed would hide a part of what is measured. What lies in
# mapped files is not counted, as the system may drop it at any time.
PEAK = """
import re, sys, threading, time
from pathlib import Path
import torch, onnxruntime
from ldmrt.tools.cli import cli

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

small, large = sys.argv[1:3]
def run(checkpoint, bundle):
    words = ["verify", bundle, "--against", checkpoint, "--backend", "onnxruntime", "--low-memory"]
    assert not cli.main(words, standalone_mode=False)

run(small, sys.argv[3])
before, most = anonymous(), 0.0
def watch():
    global most
    while True:
        time.sleep(0.002)
        most = max(most, anonymous())

threading.Thread(target=watch, daemon=True).start()
run(large, sys.argv[4])
print(most - before)
"""


@pytest.mark.slow(minutes=1)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell a process its memory")
def test_memory_is_a_part_of_the_weights(ldmrt: Any, checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    """Of a U-Net of 150 MB in half precision, 300 MB in float32 on either side."""
    model, megabytes = wide_checkpoint(448)
    assert 140 < megabytes < 160
    model.save(tmp_path / "large", torch.float16)
    del model
    assert ldmrt("export", tmp_path / "large", tmp_path / "bundle", "--precision", "fp16", "--no-verify").code == 0
    words = [sys.executable, "-c", PEAK, checkpoint, tmp_path / "large", bundle, tmp_path / "bundle"]
    # Large arrays are mapped, and given back when they are freed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    # Beside a few weights in float32, the largest of which takes 14 MB: what ONNX Runtime and drawing take.
    most, peaks = 0.3 * megabytes + 60, list[float]()
    while len(peaks) < 4 and not any(peak < most for peak in peaks):  # ONNX Runtime's arena keeps more in some runs
        ran = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment)
        assert ran.returncode == 0, ran.stderr
        peaks.append(float(ran.stdout.splitlines()[-1]))
    assert min(peaks) < most
