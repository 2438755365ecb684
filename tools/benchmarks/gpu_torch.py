"""The PyTorch model that `tools/gpu_check.sh` measures: the whole loop runs on the device, without ldmrt's runtime."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmrt.export.components.table import components
from ldmrt.model.checkpoint.checkpoint import Checkpoint
from ldmrt.model.checkpoint.load import load
from ldmrt.runtime.samplers.plan import Plan
from ldmrt.runtime.samplers.registry import plan_from_config
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

from .checkpoints.random_checkpoint import NAMES, family_of, networks, tokenizer_files

PROMPT, GUIDANCE, SCHEDULER = "a red apple", 7.5, "ddim"


def checkpoint_of(model: str, device: str) -> Checkpoint:
    """Make a family's model with random weights, always the same on one device, or load a folder."""
    if model not in NAMES:
        return load(Path(model))
    torch.manual_seed(0)
    with torch.device(device):
        parts = {part: network.eval() for part, _, network in networks(model)}
    unet, vae, made = parts.pop("unet"), parts.pop("vae"), family_of(model)
    tokenizers = {part.replace("text_encoder", "tokenizer"): tokenizer_files() for part in parts}
    return Checkpoint(unet, vae, parts, tokenizers, made.scheduler, dict(made.index))


@dataclass(frozen=True)
class TorchModel:
    """The networks that make an image, on a device."""

    modules: dict[str, Any]  # modules, or compiled functions of them
    tokenizer: Tokenizer
    plan: Plan
    latent: tuple[int, ...]  # (1, channels, height, width)
    factor: float
    device: str
    dtype: torch.dtype

    @classmethod
    def make(cls, model: str, device: str, dtype: torch.dtype, steps: int, *, compiled: bool = False) -> "TorchModel":
        """Load a model in `dtype`, channels last, with the U-Net and the decoder compiled if wanted."""
        checkpoint = checkpoint_of(model, device)
        modules: dict[str, Any] = {name: part.module for name, part in components(checkpoint).items()}
        for name, module in modules.items():
            modules[name] = module.to(device, dtype).to(memory_format=torch.channels_last)
        if compiled:
            modules |= {name: torch.compile(modules[name], mode="reduce-overhead") for name in ("unet", "vae_decoder")}
        unet, space = checkpoint.unet.config, checkpoint.stage.space
        plan = plan_from_config(checkpoint.scheduler, steps, name=SCHEDULER)
        side = unet.sample_size if isinstance(unet.sample_size, int) else 64
        latent = (1, space.channels, side, side)
        tokenizer = Tokenizer(checkpoint.tokenizers["tokenizer"])
        return cls(modules, tokenizer, plan, latent, space.scaling_factor, device, dtype)

    @torch.no_grad()
    def network(self, **inputs: Tensor) -> Tensor:
        """Run the U-Net and return its prediction, float32."""
        cast = {
            name: tensor.to(self.device, torch.float32 if name == "timestep" else self.dtype)
            for name, tensor in inputs.items()
        }
        return self.modules["unet"](**cast)[0].float()

    @torch.no_grad()
    def context(self) -> Tensor:
        """Encode the empty prompt and the prompt: embeddings (2, tokens, width)."""
        ids = torch.from_numpy(self.tokenizer(["", PROMPT])).to(self.device)
        return self.modules["text_encoder"](input_ids=ids)[0]

    @torch.no_grad()
    def walk(self, context: Tensor, rows: int) -> Tensor:
        """Return the latents after `rows` rows with guidance, (1, C, h, w)."""
        table = torch.tensor(self.plan.fused, dtype=torch.float32, device=self.device)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.latent, generator=generator).to(self.device)
        state = torch.cat([x[None] * self.plan.prior_scale, x.new_zeros(table.shape[1] - 1, *x.shape)])
        nothing = torch.zeros_like(state[:1])
        for row in range(rows):
            times = x.new_full((2,), float(self.plan.t[row % self.plan.rows]))
            out = self.network(sample=state[0].repeat(2, 1, 1, 1), timestep=times, encoder_hidden_states=context)
            m = out[:1] + GUIDANCE * (out[1:] - out[:1])
            state = torch.tensordot(table[row % self.plan.rows], torch.cat([m[None], state, nothing]), 1)
        return state[0]

    @torch.no_grad()
    def image(self) -> np.ndarray:
        """Make an image of the prompt, (1, 3, H, W), uint8."""
        x = self.walk(self.context(), self.plan.rows)
        out = self.modules["vae_decoder"](latent_sample=(x / self.factor).to(self.dtype))[0].float()
        return (out / 2 + 0.5).clamp(0, 1).mul(255).round().byte().cpu().numpy()

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.device != "cpu":
            torch.cuda.synchronize()
