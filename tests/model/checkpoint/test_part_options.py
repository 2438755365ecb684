"""`ldmrt export` of a single file with parts and a scheduler from elsewhere, against diffusers and transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from safetensors.torch import save_file

from ldmrt.model.checkpoint.families import Family

from ...support.families import LENGTH
from ...support.ldm import as_written, networks
from ...support.pipelines import randomise
from ...tools.conftest import command

SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading", "steps_offset": 1,
}  # fmt: skip


@pytest.mark.slow  # an export of two networks
@torch.no_grad()
def test_parts_and_scheduler_from_elsewhere(narrow: dict[str, Family], vocabulary: Path, tmp_path: Path) -> None:
    made, bundle = networks(narrow["1.x"]), tmp_path / "bundle"
    save_file(as_written(narrow["1.x"], made), tmp_path / "model.safetensors")
    vae, encoder = randomise(made["vae"], 2).eval(), randomise(made["text_encoder"], 3).eval()
    save_file(vae.state_dict(), tmp_path / "vae.safetensors")
    encoder.save_pretrained(tmp_path / "clip")
    (tmp_path / "euler.json").write_text(json.dumps(SCHEDULER))
    words = ("--vae", tmp_path / "vae.safetensors", "--text-encoder", f"text_encoder={tmp_path / 'clip'}")
    words += ("--scheduler-config", tmp_path / "euler.json", "--set", "timestep_spacing=trailing")
    words += ("--set", "use_karras_sigmas=true", "--components", "text_encoder,vae_decoder", "--no-verify")
    assert command("export", tmp_path / "model.safetensors", bundle, "--tokenizer", vocabulary, *words) == 0

    manifest = json.loads((bundle / "ldmrt.json").read_text())
    settings = {"timestep_spacing": "trailing", "use_karras_sigmas": True}
    assert manifest["parts"] == {"vae": "vae.safetensors", "text_encoder": "clip"}
    assert manifest["scheduler"] == {"file": "euler.json", "set": settings}
    ours = EulerDiscreteScheduler.from_pretrained(bundle, subfolder="scheduler")
    theirs = EulerDiscreteScheduler.from_config(SCHEDULER, **settings)
    assert {**ours.config, "_diffusers_version": None} == {**theirs.config, "_diffusers_version": None}

    ids = torch.arange(LENGTH)[None] % encoder.config.vocab_size
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = {"text_encoder": encoder(ids)[0], "vae_decoder": vae.decode(latents)[0]}
    found = {
        "text_encoder": ran(bundle / "text_encoder", input_ids=ids.numpy()),
        "vae_decoder": ran(bundle / "vae_decoder", latent_sample=latents.numpy()),
    }
    for name, value in expected.items():
        # float32, of two runtimes that order their sums differently
        assert np.abs(found[name] - value.numpy()).max() <= 1e-4 * float(value.abs().max())


def ran(folder: Path, **inputs: Any) -> Any:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    types = {one.name: np.int32 if "int32" in one.type else None for one in session.get_inputs()}
    return session.run(None, {name: value.astype(types[name] or value.dtype) for name, value in inputs.items()})[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vae", "none.safetensors"], "none.safetensors"),
        (["--vae", "empty.safetensors"], "holds no vae that fits"),
        (["--text-encoder", "none"], "none"),
        (["--text-encoder", "text_encoder_2=empty.safetensors"], "text_encoder_2"),
        (["--scheduler-config", "none.json"], "none.json"),
        (["--scheduler-config", "empty.safetensors"], "scheduler"),
        (["--set", "timestep_spacing"], "invalid setting 'timestep_spacing'; expected KEY=VALUE"),
        (["--set", "timestep_spacin=trailing"], "no 'timestep_spacin'"),
        (["--set", "beta_start=x"], "beta_start"),
    ],
)
def test_wrong_ones_are_one_error(
    words: list[str], message: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    save_file({}, tmp_path / "empty.safetensors")
    monkeypatch.chdir(tmp_path)
    assert command("export", checkpoint, "bundle", *words) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.lower().startswith("error: ")]
    assert len(said) == 1
    assert message in said[0]
    assert not (tmp_path / "bundle").exists()
