"""`ldmrt verify --compute int8`: calibrated, stored beside the other precisions, and refused as the same model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nncf")

from ldmrt.export.precision import calibrate
from ldmrt.runtime import Bundle
from ldmrt.runtime.backends.openvino.devices import precisions as able
from ldmrt.runtime.backends.openvino.ranges import read_ranges
from ldmrt.runtime.bundle.certificate import Certificate
from ldmrt.runtime.parity import tolerances
from ldmrt.tools.console.verification.narrow import precisions

INT8 = ("--backend", "openvino", "--compute", "int8")
slow = pytest.mark.slow(minutes=1)  # networks are compiled again and again


def test_no_precision_takes_the_place_of_another() -> None:
    bare = Certificate((), (), (), {"bundle": {}})
    held = replace(bare, islands={"openvino bf16": {}, "openvino-gpu fp16": {}})
    bf16, fp16 = ("bf16", ("openvino",)), ("fp16", ("openvino-gpu",))
    assert precisions((), "int8", None) == [("fp32", ()), ("int8", ())]
    assert precisions((), "int8", held) == [("fp32", ()), bf16, fp16, ("int8", ())]
    assert precisions((), "bf16", held) == [("fp32", ()), fp16, ("bf16", ())]
    assert precisions(("onnxruntime",), "fp32", held) == [("fp32", ("onnxruntime",)), bf16, fp16]
    both = ("onnxruntime", "openvino")
    assert precisions(both, "int8", bare) == [("fp32", both), ("int8", ("openvino",))]


def test_without_ranges_one_error_names_the_next_command(ldmrt: Any, changed: Path) -> None:
    for command in (("verify", changed), ("bench", changed), ("generate", changed, "an apple")):
        ran = ldmrt(*command, *INT8)
        assert ran.code == 2
        assert ran.err.count("error:") == 1
        assert f"error: int8: {changed} holds no ranges of activations for int8" in ran.err
        assert f"try: ldmrt verify {changed} --against CHECKPOINT --compute int8 --store" in ran.err


@slow
def test_int8_is_stored_beside_the_others(ldmrt: Any, changed: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Then it opens without NNCF, and another precision that is stored leaves it there."""
    ran = ldmrt("verify", changed, "--against", checkpoint, *INT8, "--store", "--html", tmp_path / "report.html")
    assert ran.code == 0, ran.err
    opened = Bundle.open(changed)
    made, tables = opened.certificate, read_ranges(opened)
    assert made is not None
    assert [*tables] == ["unet"]
    assert opened.certificate_issues == []
    assert [(gain.backend, gain.what, gain.ratio > 0) for gain in made.times] == [
        ("openvino int8", "a row", True), ("openvino int8", "decoding", True)
    ]  # fmt: skip
    assert {one.limit for one in made.pictures if one.backend == "openvino int8"} == {tolerances.IMAGE["int8"].limit}
    assert "What narrow precisions gain" in (tmp_path / "report.html").read_text()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(calibrate, "nncf", None)
        assert ldmrt("verify", changed, *INT8).code == 0  # without the checkpoint
        assert ldmrt("generate", changed, "an apple", *INT8, "-o", tmp_path / "a.png").code == 0
        if "bf16" in able("CPU"):
            ran = ldmrt("verify", changed, "--against", checkpoint, "--compute", "bf16", "--store")
            assert ran.code == 0, ran.err
            stored = Bundle.open(changed)
            assert stored.certificate is not None
            assert {*stored.certificate.islands} == {"openvino int8", "openvino bf16"}
            assert {"openvino int8", "openvino bf16"} <= {*stored.certificate.backends}
            assert read_ranges(stored) == tables


@slow
def test_a_loss_that_is_too_large_is_another_model_and_stays_a_choice(
    ldmrt: Any, changed: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stored with that verdict, which `generate` repeats; float32 is not touched by it."""
    monkeypatch.setitem(tolerances.IMAGE, "int8", tolerances.Tolerance(90.0, "no int8 can reach it"))
    # so that no islands are looked for, which the tests beside this one are about
    monkeypatch.setitem(tolerances.COMPONENT, "int8", tolerances.Tolerance(10.0, "any error"))
    ran = ldmrt("verify", changed, "--against", checkpoint, *INT8, "--store")
    assert ran.code == 1
    assert "(openvino int8)" in ran.err
    assert "dB, at least 90" in ran.err
    assert Bundle.open(changed).certificate_issues == []
    ran = ldmrt("generate", changed, "an apple", *INT8, "-o", tmp_path / "a.png")
    assert (ran.code, (tmp_path / "a.png").exists()) == (0, True)
    assert "openvino int8 is not the same model: image of seed 0 (openvino int8): " in ran.err
    ran = ldmrt("generate", changed, "an apple", "--backend", "openvino", "-o", tmp_path / "b.png")
    assert "same model" not in ran.err
    assert "not the same model" in ldmrt("inspect", changed).out


@slow
def test_a_module_whose_range_is_wrong_becomes_an_island(
    ldmrt: Any, changed: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault: nothing of what one convolution takes is within its range."""
    measured, broken = calibrate.ranges_of, "mid_block.resnets.0.conv1"

    def with_fault(*arguments: Any) -> Any:
        return measured(*arguments) | {broken: (0.0, 1e-6)}

    monkeypatch.setattr(calibrate, "ranges_of", with_fault)
    monkeypatch.setitem(tolerances.COMPONENT, "int8", tolerances.Tolerance(0.06, "half of what the fault errs by"))
    ran = ldmrt("verify", changed, "--against", checkpoint, *INT8, "--json", changed / "found.json")
    islands = json.loads((changed / "found.json").read_text())["islands"]["openvino int8"]
    assert any(broken.startswith(path) for path in islands["unet"]), ran.err
