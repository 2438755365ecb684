"""The network of a score SDE as ONNX: any size, by ONNX Runtime against PyTorch."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from ldmrt.export.components.table import Component
from ldmrt.export.graph.to_onnx import to_onnx
from ldmrt.model.networks.plain_unet import PlainUNet
from ldmrt.runtime.backends.ort.engine import OrtEngine
from ldmrt.runtime.tensors import TensorSpec

from ...support.pipelines import randomise

SKIP: dict[str, Any] = {
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 1,
    "time_embedding_type": "fourier",
    "norm_eps": 1e-6,
    "norm_num_groups": None,
    "mid_block_scale_factor": 2**0.5,
    "attention_head_dim": None,
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
}
IMAGE = ("batch", 3, "height", "width")
ENDS = (TensorSpec("sample", "float32", IMAGE), TensorSpec("timestep", "float32", ("batch",)))


class Named(nn.Module):
    """Takes the inputs by name and returns a tuple, as components do."""

    def __init__(self, model: PlainUNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, timestep: Tensor) -> tuple[Tensor]:
        return (self.model(sample, timestep),)


PLAIN = {"down_block_types": ("DownBlock2D",) * 3, "norm_num_groups": 8, "up_block_types": ("UpBlock2D",) * 3}


@pytest.fixture(
    scope="module", params=[pytest.param({}, marks=pytest.mark.slow, id="skip"), pytest.param(PLAIN, id="plain")]
)
def exported(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Component, Path]:
    torch.manual_seed(0)
    model = randomise(PlainUNet.from_config(SKIP | request.param)).eval()
    component = Component("score", Named(model), ENDS, (TensorSpec("out_sample", "float32", IMAGE),), {})
    return component, to_onnx(component, tmp_path_factory.mktemp("onnx") / "score")


def test_computes_what_pytorch_does_at_any_size(exported: tuple[Component, Path]) -> None:
    component, path = exported
    engine, reference = OrtEngine("score", path), component.engine()
    for seed, (batch, (h, w)) in enumerate(itertools.product((1, 3), ((8, 8), (13, 9), (7, 22), (24, 16)))):
        sample = np.random.default_rng(seed).standard_normal((batch, 3, h, w), np.float32)
        levels = np.array([[0.01, 1.3, 1348.0], [40.0]][batch == 1], np.float32)
        feeds = {"sample": sample * np.hypot(1, levels)[:, None, None, None], "timestep": levels}
        (found,), (expected,) = engine(**feeds).values(), reference(**feeds).values()
        assert found.shape == sample.shape
        # float32 on both sides, sums in another order: of each image, as they are divided by their levels
        for mine, other in zip(found, expected, strict=True):
            assert np.abs(mine - other).max() <= 2e-5 * np.abs(other).max()
    engine.close()


def test_nodes_are_called_after_modules_and_weights_after_diffusers(exported: tuple[Component, Path]) -> None:
    component, path = exported
    graph = onnx.load(path, load_external_data=False).graph
    names = {one.name for one in graph.initializer}
    state = component.module.model.state_dict()
    assert "time_proj.weight" in names
    assert {name for name in state if name.endswith("conv1.bias")} <= names
    assert all(node.name for node in graph.node)
