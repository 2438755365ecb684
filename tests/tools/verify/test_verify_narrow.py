"""`ldmrt verify --compute bf16`: beside float32 in the certificate, with the modules that it keeps in float32."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import ldmrt.runtime
from ldmrt.model import load
from ldmrt.runtime import Bundle
from ldmrt.runtime.backends.openvino.devices import precisions
from ldmrt.runtime.parity.metrics import psnr
from ldmrt.runtime.parity.tolerances import COMPONENT, IMAGE

pytestmark = [
    pytest.mark.slow,  # a network is compiled for every set of islands that is tried
    pytest.mark.skipif("bf16" not in precisions("CPU"), reason="no bfloat16 on this CPU"),
]


def test_both_precisions_are_stored(ldmrt: Any, changed: Path, checkpoint: Path) -> None:
    ran = ldmrt("verify", changed, "--against", checkpoint, "--compute", "bf16", "--store")
    assert ran.code == 0, ran.err
    made = Bundle.open(changed).certificate
    assert made is not None
    assert {one.backend for one in made.drifts} == {"onnxruntime", "openvino bf16"}
    assert {(one.backend, one.limit) for one in made.figures if one.limit} == {
        ("onnxruntime", COMPONENT["fp32"].limit),
        ("openvino bf16", COMPONENT["bf16"].limit),
    }
    assert made.about["tolerances"]["fp32"]["picture"]["limit"] == IMAGE["fp32"].limit
    assert made.about["tolerances"]["bf16"]["picture"]["limit"] == IMAGE["bf16"].limit
    assert [*made.islands] == ["openvino bf16"]
    assert ldmrt("verify", changed, "--backend", "openvino", "--compute", "bf16").code == 0  # without the checkpoint
    narrow, exact = (ldmrt_image(changed, compute) for compute in ("bf16", "fp32"))
    assert IMAGE["bf16"].limit <= psnr(narrow, exact) < IMAGE["fp32"].limit


def ldmrt_image(bundle: Path, compute: str) -> Any:
    with ldmrt.runtime.open(bundle, "openvino", compute=compute) as pipeline:
        return pipeline("a red apple", num_inference_steps=4, output_type="np").pixels[0]


def test_a_module_that_errs_too_much_stays_in_float32(
    ldmrt: Any, checkpoint: Path, bundle: Path, tmp_path: Path, shared_exports: None
) -> None:
    """A convolution adds 3000, which the norm after it takes away: numbers of bfloat16 are 16 apart there."""
    tiny, folder = load(checkpoint), tmp_path / "bundle"
    with torch.no_grad():
        tiny.vae.decoder.mid_block.resnets[0].conv1.bias += 3000
    tiny.save(tmp_path / "inexact")
    assert ldmrt("export", tmp_path / "inexact", folder, "--no-verify").code == 0
    how = ("--backend", "openvino", "--compute", "bf16")
    before = ldmrt("verify", folder, "--against", tmp_path / "inexact", *how, "--json", tmp_path / "found.json")
    assert before.code == 0, before.err
    assert "vae_decoder: decoder.mid_block.resnets.0 stays in fp32 on openvino bf16; error: 0." in before.err
    found = json.loads((tmp_path / "found.json").read_text())["islands"]["openvino bf16"]
    assert [*found["vae_decoder"]] == ["decoder.mid_block.resnets.0"]
    ran = ldmrt("verify", folder, "--against", tmp_path / "inexact", *how, "--store")
    opened = Bundle.open(folder)
    assert opened.islands("openvino", "bf16") == found, ran.err
    assert ldmrt("verify", folder, *how).code == 0  # which opens it with what the certificate states
