"""Engines that were built are verified: through the command line, over the TensorRT of straw, which runs the graphs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ldmrt.runtime import Bundle, Certificate
from ldmrt.runtime.bundle.engines.store import FOLDER, EngineFile, engines, write_engine

from ...support.fakes.builder import GPU, altered, install
from ...support.fakes.cuda import FakeCuda

pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")  # of Polygraphy
BUILD = ("--backend", "tensorrt")


def made(path: Path) -> Certificate:
    return Certificate.from_json(json.loads(path.read_text()))


@pytest.mark.slow(minutes=0.11)
@pytest.mark.parametrize("backend", GPU)
def test_build_holds_what_it_built_to_the_certificate(
    ldmrt: Any, changed: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then `verify` measures them beside ONNX Runtime without being asked."""
    gpu = install(monkeypatch, backend)
    ran = ldmrt("build", changed, "--backend", backend)
    assert ran.code == 0, ran.err
    assert "not run" not in ran.err
    # tokenizer, text encoder, VAE encoder, scaling factor, rows, picture; U-Net and decoder by rows and picture alone
    assert ran.err.count(f"│ {backend} ") == 8
    assert gpu.did["ran"] > 40  # twenty rows, twice
    assert gpu.leftovers == []

    ran = ldmrt("verify", changed, "--json", changed / "it.json")
    assert ran.code == 0, ran.err
    found = made(changed / "it.json")
    assert {one.backend for one in found.drifts} == {"onnxruntime", backend}
    assert found.left_out == ()

    # A network that is not the one it was made of, in a file that is whole.
    (engine,) = (one for one in engines(changed) if isinstance(one, EngineFile) and one.recipe.component == "unet")
    plan = json.loads(engine.read(Bundle.open(changed)))
    dtype, shape, data = plan["weights"]["conv_in.bias"]
    plan["weights"]["conv_in.bias"] = [dtype, shape, data[:8][::-1] + data[8:]]
    write_engine(changed / FOLDER, engine.recipe, altered(b"{}", **plan), engine.measured)
    ran = ldmrt("verify", changed)
    assert ran.code == 1
    assert f"row 0 ({backend}): forced" in ran.err
    assert "(onnxruntime)" not in ran.err


def test_cases_of_other_shapes_are_left_out_and_named(
    ldmrt: Any, changed: Path, checkpoint: Path, gpu: FakeCuda, tmp_path: Path
) -> None:
    """An engine of the one size takes the rows and the picture, and not odd batches and sides."""
    assert ldmrt("build", changed, *BUILD, "--no-verify").code == 0
    files = tmp_path / "it.json", tmp_path / "it.xml", tmp_path / "it.html"
    words = (word for pair in zip(("--json", "--junit", "--html"), files, strict=True) for word in pair)
    ran = ldmrt("verify", changed, "--against", checkpoint, "--backend", "tensorrt", *words)
    assert ran.code == 0, ran.err
    found = made(files[0])
    assert len(found.drifts) == 20
    assert len(found.pictures) == 1
    left = {(one.component, one.case) for one in found.left_out}
    sizes, drawing = ("batch 3 at 16x16", "batch 2 at 18x16"), ("unet", "vae_decoder", "vae_encoder")
    odd = {(name, size) for name in drawing for size in sizes}
    assert left == odd | {("unet", "batch 1 at 16x16"), ("text_encoder", "batch 3")}
    older = json.loads(files[0].read_text())
    del older["left_out"]
    assert replace(found, left_out=()) == Certificate.from_json(older)
    (line,) = (line for line in ran.err.splitlines() if line.startswith("skipped: unet"))
    assert "unet on tensorrt, 3 skipped (batch 1 at 16x16, batch 3 at 16x16, batch 2 at 18x16): unet: engine" in line
    assert line.endswith("takes 2x4x8x8, not 1x4x8x8 as sample")
    assert " 3 skipped │" in ran.out
    suite = ElementTree.parse(files[1]).getroot()
    assert suite.attrib["skipped"] == str(len(suite.findall("testcase/skipped"))) == "8"
    assert line.removeprefix("skipped: ") in files[2].read_text()


def test_where_no_engine_takes_anything(ldmrt: Any, changed: Path, gpu: FakeCuda) -> None:
    """It was asked for: exit code 2, with the command that helps. It was not: ONNX Runtime's figures stand."""
    hint = f"ldmrt build {changed} --backend tensorrt --sizes 16x16"
    other = f"ldmrt verify {changed} --against CHECKPOINT --side PIXELS --store"
    idle = f"verify: nothing of tensorrt could be measured\n  try: {hint}, or {other}\n"
    ran = ldmrt("build", changed, *BUILD, "--sizes", "32x32", "--components", "unet,vae_decoder")
    assert ran.code == 0
    assert idle in ran.err
    ran = ldmrt("verify", changed, "--backend", "tensorrt")
    assert ran.code == 2
    assert idle in ran.err
    ran = ldmrt("verify", changed)
    assert ran.code == 0
    assert "skipped: rows on tensorrt, 20 skipped (row 0, row 1, row 2, ...): text_encoder: no engine" in ran.err
    assert "skipped: picture on tensorrt, 1 skipped (seed 0): text_encoder: no engine" in ran.err
