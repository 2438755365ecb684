"""`ldmrt generate` with another scheduler's config, and single keys of it, against diffusers."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from ...support.loras import pipeline
from ..conftest import Ran, command

PROMPT = "a red apple, noto style, blue background"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
EULER = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "linspace", **BETAS}
WAYS: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {  # a config or the bundle's own, and keys of it
    "a config and a key": (EULER, {"timestep_spacing": "trailing"}),
    "a key": (None, {"timestep_spacing": "trailing"}),
}


@pytest.fixture
def theirs(checkpoint: Path) -> Any:
    """The checkpoint's pipeline, with its own scheduler."""
    made = pipeline(checkpoint)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("name", list(WAYS))
def test_as_diffusers_draws_it(name: str, theirs: Any, bundle: Path, tmp_path: Path) -> None:
    config, settings = WAYS[name]
    noise = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)
    np.save(tmp_path / "noise.npy", noise)
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
        words += ["--scheduler-config", tmp_path / "config.json"]
    asked = ("--steps", 4, "--guidance", 3, "--latents", tmp_path / "noise.npy", "--save-latents")
    assert command("generate", bundle, PROMPT, *asked, *words, "-o", tmp_path / "a.png") == 0
    config = config or dict(theirs.scheduler.config)
    theirs.scheduler = getattr(diffusers, config["_class_name"]).from_config(config, **settings)
    how = {"latents": torch.from_numpy(noise), "guidance_scale": 3.0, "num_inference_steps": 4}
    expected = theirs(PROMPT, output_type="latent", **how).images.numpy()
    found = np.load(tmp_path / "a.npy")
    # float32 over four rows, of two runtimes that order their sums differently
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()
    notes = json.loads(Image.open(tmp_path / "a.png").text["ldmrt"])  # type: ignore[attr-defined]
    assert notes["scheduler_settings"] == settings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "spacing=trailing"], "DDIMScheduler has no 'spacing'"),
        (["--set", "timestep_spacing"], "expected KEY=VALUE"),
        (["--set", "timestep_spacing=trailin"], "no timestep_spacing 'trailin', did you mean 'trailing'?"),
        (["--scheduler-config", "none.json"], "none.json"),
        (["--scheduler-config", "."], "scheduler_config.json"),
    ],
)
def test_wrong_ones_are_one_error(
    words: list[str], message: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code = command("generate", bundle, PROMPT, *words)
    assert message in Ran(code, *capsys.readouterr()).error
    assert list(tmp_path.iterdir()) == []
