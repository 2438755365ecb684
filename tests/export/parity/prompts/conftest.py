"""What the tests of prompt syntaxes share: small models of one text encoder and of two, here and in diffusers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.runtime import Pipeline, Request

from ....support.families import FAMILIES
from ....support.pipelines import save_pipeline

STEPS, SIDE = 4, 8


@dataclass(frozen=True)
class Model:
    """A family: our pipeline with PyTorch's networks, and diffusers' with the same weights."""

    name: str
    folder: Path
    ours: Pipeline
    theirs: Any

    @property
    def encoders(self) -> list[tuple[Any, Any]]:
        """Their tokenizers and text encoders."""
        pairs = [(getattr(self.theirs, f"tokenizer{end}", None), f"text_encoder{end}") for end in ("", "_2")]
        return [(tokenizer, getattr(self.theirs, name)) for tokenizer, name in pairs if tokenizer is not None]

    def embeddings(self, prompt: str, syntax: str) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Ours of a prompt: those that the U-Net is given, (1, tokens, width), and the pooled ones."""
        request = Request(prompt, prompt_syntax=syntax, guidance_scale=1.0, num_inference_steps=STEPS)
        (given,) = self.ours._encode(request).inputs.variants
        return given["encoder_hidden_states"], given.get("text_embeds")

    def looped(
        self, x: NDArray[np.float32], told: Sequence[Sequence[torch.Tensor]], weights: Sequence[float], scale: float
    ) -> NDArray[np.float32]:
        """Draw by the obvious loop, with DDIM: at each step the negative embedding, then those of the parts."""
        scheduler = diffusers.DDIMScheduler.from_config(self.theirs.scheduler.config)
        scheduler.set_timesteps(STEPS)
        latents = torch.from_numpy(x)
        with torch.no_grad():
            for t, (negative, *parts) in zip(scheduler.timesteps, told, strict=True):
                alone = self.theirs.unet(latents, t, negative).sample
                guided = alone.clone()
                for part, weight in zip(parts, weights, strict=True):
                    guided += weight * scale * (self.theirs.unet(latents, t, part).sample - alone)
                latents = scheduler.step(guided, t, latents).prev_sample
        return latents.numpy()

    def drawn(self, prompt: Any, x: NDArray[np.float32], **asked: Any) -> NDArray[np.float32]:
        """Ours from the same first latents, with DDIM."""
        how = {"num_inference_steps": STEPS, "scheduler": "ddim", "output_type": "latent", **asked}
        return self.ours(prompt, latents=x, **how).latents


def first_latents(images: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(5).standard_normal((images, 4, SIDE, SIDE), dtype=np.float32)


def relative(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest error, of the largest value."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """Each family once."""
    root = tmp_path_factory.mktemp("prompts")
    made = {}
    for name in ("sd15", "sdxl"):
        folder: Path = save_pipeline(name, root / name)
        ours = torch_pipeline(replace(load(folder), long_prompts=True))
        made[name] = Model(name, folder, ours, getattr(diffusers, FAMILIES[name].pipeline).from_pretrained(folder))
    return made
