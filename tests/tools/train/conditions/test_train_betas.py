"""`--beta-schedule` and `--zero-terminal-snr`: what is written draws in diffusers as here, and is trained further."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.model.training.diffusion.levels import cumulative_alphas

V = ("--prediction", "v_prediction")
ZERO = ("--zero-terminal-snr", *V)
CONFIG = Path("scheduler") / "scheduler_config.json"


def scheduler_in(out: Path, **asked: Any) -> Any:
    """diffusers' scheduler of a run, whose alpha_bar is that of the training."""
    config = json.loads((out / CONFIG).read_text())
    assert config.items() >= asked.items()
    made = getattr(diffusers, config["_class_name"]).from_pretrained(out / "scheduler")
    # theirs is a product of a thousand numbers in float32
    torch.testing.assert_close(cumulative_alphas(config), made.alphas_cumprod.double(), rtol=1e-4, atol=1e-6)
    return made


@pytest.mark.slow(minutes=0.08)
def test_noise_alone_at_the_last_step_is_drawn_as_in_diffusers(
    ldmrt: Any, beside: tuple[object, ...], fruit: Path, tmp_path: Path
) -> None:
    out, tuned = tmp_path / "out", tmp_path / "tuned"
    words = (*beside, *ZERO)
    assert ldmrt(*words, "--steps", 1, "--out", out).code == 0
    made = scheduler_in(out, rescale_betas_zero_snr=True, beta_schedule="scaled_linear", timestep_spacing="trailing")
    assert made.alphas_cumprod[-1] == 0
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(out, safety_checker=None)
    start = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    asked: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    expected = theirs("number 1", height=16, width=16, latents=torch.from_numpy(start), **asked).images.numpy()
    found = torch_pipeline(load(out))("number 1", latents=start, **asked).latents
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * np.abs(expected).max())  # float32, and guidance
    plain = ldmrt(*beside, *V, "--steps", 2, "--out", out, "--resume")
    assert "another zero-terminal-snr; expected True; found None" in plain.error
    assert ldmrt(*words, "--steps", 2, "--out", out, "--resume").code == 0
    more = ("--data", fruit, "--size", 16, "--batch", 2, "--previews", 1, "--steps", 1, "--out", tuned)
    ran = ldmrt("train", "finetune", "--from", out, *more)
    assert ran.code == 0, ran.err
    assert json.loads((tuned / CONFIG).read_text()) == json.loads((out / CONFIG).read_text())


@pytest.mark.slow(minutes=0.09)
@pytest.mark.parametrize("name", ["sigmoid", "linear"])
def test_betas_of_latents(name: str, ldmrt: Any, beside: tuple[object, ...], fruit: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = ldmrt(*beside, "--beta-schedule", name, "--steps", 1, "--out", out)
    assert ran.code == 0, ran.err
    made = scheduler_in(out, beta_schedule=name, beta_start=0.0001, beta_end=0.02)
    assert type(made).__name__ == ("DDPMScheduler" if name == "sigmoid" else "DDIMScheduler")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(out, safety_checker=None)
    assert len(theirs("number 1", height=16, width=16, num_inference_steps=2, output_type="np").images) == 1
    refused = ldmrt(*beside, "--steps", 2, "--out", out, "--resume")
    assert f"another beta-schedule; expected {name}; found None" in refused.error
    more = ("--data", fruit, "--size", 16, "--batch", 2, "--previews", 1, "--steps", 1, "--out", tmp_path / "tuned")
    assert ldmrt("train", "finetune", "--from", out, *more).code == 0


def test_betas_of_pixels(ldmrt: Any, pixels: tuple[object, ...], tmp_path: Path) -> None:
    out, same, usual = (tmp_path / name for name in ("out", "same", "usual"))
    ran = ldmrt(*pixels, "--beta-schedule", "sigmoid", *ZERO, "--steps", 1, "--out", out)
    assert ran.code == 0, ran.err
    assert scheduler_in(out, beta_schedule="sigmoid", clip_sample=True).alphas_cumprod[-1] == 0
    for folder, more in ((same, ("--beta-schedule", "squaredcos_cap_v2")), (usual, ())):
        assert ldmrt(*pixels, *more, "--steps", 1, "--out", folder).code == 0
    for name in (CONFIG, Path("unet") / "diffusion_pytorch_model.safetensors"):
        assert (same / name).read_bytes() == (usual / name).read_bytes()  # it is the default
    assert ldmrt(*pixels, "--steps", 2, "--out", same, "--resume").code == 0


@pytest.mark.parametrize("variance", ["fixed_large", "learned_range"])
def test_betas_without_a_condition(variance: str, ldmrt: Any, pixels: tuple[object, ...], tmp_path: Path) -> None:
    """Also where the bound teaches the variance, whose last term has no signal either."""
    words = ("train", "unconditional", *pixels[2:4], "--size", 16, "--batch", 2, "--variance", variance)
    words += ("--beta-schedule", "linear", *ZERO, "--timesteps", "importance")
    ran = ldmrt(*words, "--steps", 2, "--out", tmp_path)
    assert ran.code == 0, ran.err
    assert scheduler_in(tmp_path, beta_schedule="linear", variance_type=variance).alphas_cumprod[-1] == 0
    assert all(np.isfinite(json.loads(line)["loss"]) for line in (tmp_path / "log.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--zero-terminal-snr"], "--zero-terminal-snr cannot be combined with --prediction epsilon"),
        (["--zero-terminal-snr", "--prediction", "flow_prediction"], "a flow has no betas"),
        (["--beta-schedule", "linear", "--prediction", "flow_prediction"], "--beta-schedule cannot be combined with"),
        (["--beta-schedule", "cosine"], "--beta-schedule"),
    ],
)
def test_contradictions_are_refused(
    more: list[str], message: str, ldmrt: Any, beside: tuple[object, ...], tmp_path: Path
) -> None:
    ran = ldmrt(*beside, *more, "--steps", 1, "--out", tmp_path / "out")
    assert ran.code == 2
    assert message in ran.err
    assert not (tmp_path / "out").exists()
