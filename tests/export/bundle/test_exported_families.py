"""Bundles of families draw what their checkpoints draw, and say the same of the model."""

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ldmrt.export.bundle_writer import export_bundle
from ldmrt.export.components.table import components
from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.export.graph.to_onnx import to_onnx
from ldmrt.model import UNet, UNetConfig, load
from ldmrt.model.lora.merge import merge, read_lora
from ldmrt.runtime import Bundle
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.backends.ort.engine import OrtEngine

from ...support.families import FAMILIES
from ...support.loras import State, save
from ...support.pipelines import randomise, save_pipeline
from ..families.test_stable_diffusion import close, found

EXPORTED = ("sdxl", "sd15-inpainting")  # of the others the same graphs are exported elsewhere
SMALL_XL = {
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [16, 32],
    "attention_head_dim": [1, 2],
    "transformer_layers_per_block": 1,
}


@pytest.mark.slow  # two exports that no other test shares
def test_what_xl_alone_has_is_exported(tmp_path: Path) -> None:
    """Its second text encoder, and a U-Net of two levels that takes sizes and pooled embeddings."""
    config = {**FAMILIES["sdxl"].unet, **SMALL_XL}
    unet = randomise(UNet(UNetConfig.read({"_class_name": "UNet2DConditionModel", **config})))
    checkpoint = replace(load(save_pipeline("sdxl", tmp_path / "checkpoint")), denoiser=unet)
    parts = components(checkpoint)
    engines: dict[str, Any] = {name: part.engine for name, part in parts.items()}
    for part in ("text_encoder_2", "unet"):
        engines[part] = partial(OrtEngine, part, to_onnx(parts[part], tmp_path / part))
    reference = torch_pipeline(checkpoint)
    exported = replace(torch_pipeline(checkpoint), engines=LazyEngines(engines))
    close(*(found(pipeline, "sdxl", None, guidance_scale=4.0) for pipeline in (exported, reference)))
    exported.close()


@pytest.mark.parametrize("name", FAMILIES)
def test_bundle_is_of_the_shape_of_its_checkpoint(name: str, tmp_path: Path, exported: list[str]) -> None:
    checkpoint = load(save_pipeline(name, tmp_path / "checkpoint"))
    assert [done.component for done in export_bundle(checkpoint, tmp_path / "bundle")] == exported
    assert Bundle.open(tmp_path / "bundle").stages == (torch_pipeline(checkpoint).stage,)


@pytest.mark.slow  # whole bundles
@pytest.mark.parametrize("name", EXPORTED)
def test_bundle_draws_what_its_checkpoint_draws(name: str, tmp_path: Path) -> None:
    checkpoint = load(save_pipeline(name, tmp_path / "checkpoint"))
    for _ in export_bundle(checkpoint, tmp_path / "bundle"):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".* it has no parity certificate")
        bundles = [open_pipeline(tmp_path / "bundle", backend) for backend in ("onnxruntime", "openvino")]
    expected = found(torch_pipeline(checkpoint), name, None, guidance_scale=4.0)
    for bundle in bundles:
        assert bundle.stage == torch_pipeline(checkpoint).stage
        close(found(bundle, name, None, guidance_scale=4.0), expected)
    lora = save(factors_of(tmp_path / "checkpoint"), tmp_path / "style.safetensors")
    bundles[0].load_lora(lora)
    merge(checkpoint.networks, [(read_lora(lora), 0.7)])
    merged = found(torch_pipeline(checkpoint), name, None, guidance_scale=4.0)
    close(found(bundles[0], name, None, guidance_scale=4.0, loras={"style": 0.7}), merged)
    assert np.abs(merged - expected).max() > 0.01 * np.abs(expected).max()


def factors_of(checkpoint: Path) -> State:
    """Return a LoRA of all text encoders and of the U-Net's attention and convolutions."""
    networks = load(checkpoint).networks
    torch.manual_seed(9)
    state: State = {}
    for name, network in networks.items():
        for path, module in network.named_modules() if name != "vae" else ():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                down = torch.randn(2, *module.weight.shape[1:]) * 0.1
                up = torch.randn(module.weight.shape[0], 2, *(1 for _ in module.weight.shape[2:])) * 0.1
                state |= {f"{name}.{path}.lora_A.weight": down, f"{name}.{path}.lora_B.weight": up}
    return state
