"""A bundle that was exported for long prompts draws in ONNX Runtime what PyTorch draws."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ldmrt.export.bundle_writer import export_bundle
from ldmrt.model import load
from ldmrt.runtime import open as open_bundle

from .conftest import Model, relative

pytestmark = pytest.mark.slow
# Relative to the largest latent: two programs' float32 through a handful of rows, with guidance.
TOLERANCE = 2e-4
PROMPTS: list[tuple[str, Any]] = [
    ("plain", "two pears"),
    ("a1111", "a (red:1.3) apple BREAK [two] pears AND a penguin :0.5"),
    ("a1111", ["a [red|yellow] BREAK [two:apple:2]", "two pears"]),
    ("compel", "a (red)0.5 apple"),
]


def test_prompts_of_any_length(models: dict[str, Model], tmp_path: Path) -> None:
    loaded = replace(load(models["sd15"].folder), long_prompts=True)
    for _ in export_bundle(loaded, tmp_path / "bundle", only=["text_encoder", "unet", "vae_decoder"]):
        pass
    reference = models["sd15"].ours
    how = {"num_inference_steps": 3, "output_type": "latent", "negative_prompt": "blue", "guidance_scale": 3.0}
    with open_bundle(tmp_path / "bundle") as pipeline:
        assert {spec.name: spec.shape for spec in pipeline.engines["unet"].inputs}["encoder_hidden_states"][
            1
        ] == "tokens"
        for syntax, prompt in PROMPTS:
            expected = reference(prompt, prompt_syntax=syntax, **how).latents
            assert relative(pipeline(prompt, prompt_syntax=syntax, **how).latents, expected) < TOLERANCE
