"""`ldmrt verify`: what needs a checkpoint, which components are named, and times in JUnit XML."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ldmrt.runtime import Bundle

NEEDY = {
    "--prompt": "a cat",
    "--seed": "1",
    "--side": "16",
    "--store": None,
    "--bisect": "unet",
    "--variant": "fp16",
    "--tokenizer": "folder",
    "--prediction": "epsilon",
    "--controlnet": "canny=folder",
    "--adapter": "canny=folder",
    "--lora": "file.safetensors:0.5",
    "--embedding": "file.pt",
}


@pytest.mark.parametrize("option", NEEDY)
def test_options_that_need_a_checkpoint(ldmrt: Any, bundle: Path, option: str) -> None:
    value = NEEDY[option]
    ran = ldmrt("verify", bundle, option, *([] if value is None else [value]))
    assert f"verify: {option} needs --against; expected a checkpoint to measure against" in ran.error
    assert f"  try: ldmrt verify {bundle} --against CHECKPOINT" in ran.err


def test_every_component_is_named(ldmrt: Any, certified: Path, checkpoint: Path, tmp_path: Path) -> None:
    ran = ldmrt("verify", certified, "--junit", tmp_path / "it.xml")
    assert ran.code == 0, ran.err
    named = {line.split("│")[1].strip() for line in ran.out.splitlines() if line.startswith("│")}
    assert set(Bundle.open(certified).components) <= named
    assert re.search(r"│ unet +│ onnxruntime +│ not alone: by rows and image +│", ran.out)
    assert re.search(r"│ vae_decoder +│ onnxruntime +│ not alone: by the image +│", ran.out)
    times(tmp_path / "it.xml")

    ran = ldmrt("verify", certified, "--against", checkpoint, "--junit", tmp_path / "it.xml")
    assert ran.code == 0, ran.err
    assert "not alone" not in ran.out
    times(tmp_path / "it.xml")


def times(file: Path) -> None:
    suite = ElementTree.parse(file).getroot()
    cases = [float(case.attrib["time"]) for case in suite]
    assert float(suite.attrib["time"]) == pytest.approx(sum(cases), abs=1e-3)
    assert sum(cases) > 0.01
    rows = [float(case.attrib["time"]) for case in suite if case.attrib["classname"] == "rows onnxruntime"]
    assert len(rows) == 20
    assert min(rows) > 0
