"""Graphs for ONNX Runtime's CUDA provider: beside the graphs that every backend runs, and beside PyTorch."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor, nn

from ldmrt.export.graph.attention import attend_side_by_side
from ldmrt.export.graph.cuda.write import write_cuda_graph
from ldmrt.export.graph.naming import name_after_modules
from ldmrt.export.graph.operators.translations import TRANSLATIONS
from ldmrt.model.networks.attention import Transformer2D
from ldmrt.model.networks.blocks import ResnetBlock
from ldmrt.runtime.backends.ort.engine import OrtEngine
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.graphs import cuda_file
from ldmrt.runtime.tensors import Arrays, Specs
from tests.support.cuda_operators import for_cpu

ROUNDING = 5e-6  # of the largest value: float32 sums in another order, through all layers of a network
SIZES = {"batch": 2, "calls": 2, "saved": 3, "rows": 4, "terms": 5, "draws": 4, "timesteps": 2}


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def feeds(inputs: Specs, seed: int = 0) -> Arrays:
    """Random numbers for every input, with sides of 8; whole numbers are small enough to be indices."""
    random, made = np.random.default_rng(seed), Arrays()
    for spec in inputs:
        shape = [SIZES.get(dim, 8) if isinstance(dim, str) else dim for dim in spec.shape]
        whole = spec.dtype.startswith("int")
        made[spec.name] = random.integers(0, 2, shape) if whole else random.standard_normal(shape).astype(spec.dtype)
    if "timestep" in made:
        made["timestep"] = np.full(SIZES["batch"], 501, np.float32)
    return made


def compare(plain: Path, inputs: Arrays, scratch: Path) -> None:
    runs = for_cpu(cuda_file(plain), cuda_file(plain).with_name(scratch.name))
    try:
        found = OrtEngine("test", runs)(**inputs)
    finally:
        runs.unlink()
    for name, expected in OrtEngine("test", plain)(**inputs).items():
        assert np.abs(found[name] - expected).max() <= ROUNDING * np.abs(expected).max(), name


def twins(bundle: Path) -> Iterator[str]:
    opened = Bundle.open(bundle)
    return (name for name in opened.graphs if len(opened.models(name)) > 1)


def test_every_network_has_a_twin(bundle: Path) -> None:
    assert {*twins(bundle)} >= {"text_encoder", "unet", "step", "vae_decoder", "vae_encoder"}


@pytest.mark.parametrize("name", ["text_encoder", "unet", "step", "vae_decoder", "vae_encoder"])
def test_a_twin_computes_what_the_graph_does(name: str, bundle: Path, tmp_path: Path) -> None:
    opened = Bundle.open(bundle)
    plain, twin = opened.models(name)
    kinds = operators(twin)
    assert "InstanceNormalization" not in kinds
    if name != "text_encoder":  # whose attention has a mask
        assert "Attention" not in kinds
        assert {"GroupNorm", "SkipGroupNorm", "MultiHeadAttention"} <= kinds.keys()
    compare(plain, feeds(opened.specs(name)[0]), tmp_path.with_suffix(".onnx"))


class Block(nn.Module):
    """A residual block and a transformer, as in the first level of Stable Diffusion, and the norm of its output."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.resnet = ResnetBlock(32, channels, time_channels=24, groups=32, eps=1e-5)
        self.transformer = Transformer2D(channels, heads, context=16, depth=1, groups=32, linear=False)
        self.norm = nn.GroupNorm(32, channels)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        out: Tensor = self.norm(self.transformer(self.resnet(x, time), context))
        return out


def exported(module: nn.Module, inputs: dict[str, Tensor], folder: Path) -> Path:
    """As `to_onnx` writes a network."""
    batch, height, width = (torch.export.Dim(name, min=1, max=64) for name in ("batch", "h", "w"))
    shapes = ({0: batch, 2: height, 3: width}, {0: batch}, {0: batch})
    program = torch.onnx.export(
        module, tuple(inputs.values()), dynamo=True, opset_version=23, verbose=False, dynamic_shapes=shapes,
        input_names=[*inputs], output_names=["y"], custom_translation_table=TRANSLATIONS,
    )  # fmt: skip
    assert program is not None
    name_after_modules(program.model)
    attend_side_by_side(program.model)
    RemoveUnusedNodesPass()(program.model)
    onnx_ir.save(program.model, folder / "model.onnx", external_data="model.onnx_data", size_threshold_bytes=1024)
    assert write_cuda_graph("test", folder / "model.onnx", folder / "model.cuda.onnx")
    return folder / "model.onnx"


@pytest.mark.slow(minutes=0.24)
@pytest.mark.parametrize(
    ("channels", "kinds"),
    [
        (320, {"SkipGroupNorm": 3, "ReduceMean": 2, "MultiHeadAttention": 2, "BiasSplitGelu": 1}),
        (96, {"SkipGroupNorm": 0, "ReduceMean": 8, "MultiHeadAttention": 2}),  # no kernel for groups of three channels
    ],
)
def test_a_twin_computes_what_pytorch_does(channels: int, kinds: dict[str, int], tmp_path: Path) -> None:
    torch.manual_seed(channels)
    module = Block(channels, 8).eval()
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # scales and shifts of norms are ones and zeros
    inputs = {"x": torch.randn(2, 32, 7, 9), "time": torch.randn(2, 24), "context": torch.randn(2, 5, 16)}
    plain = exported(module, inputs, tmp_path)
    counted = operators(cuda_file(plain))
    assert {kind: counted[kind] for kind in kinds} == kinds
    fresh = {name: torch.randn(3, *tensor.shape[1:]) for name, tensor in inputs.items()}
    with torch.no_grad():
        expected = module(**fresh).numpy()
    found = OrtEngine("test", for_cpu(cuda_file(plain), tmp_path / "run.onnx"))(
        **{name: tensor.numpy() for name, tensor in fresh.items()}
    )["y"]
    assert np.abs(found - expected).max() <= ROUNDING * np.abs(expected).max()


def test_a_graph_without_such_operators_has_no_twin(tmp_path: Path) -> None:
    program = torch.onnx.export(
        nn.Linear(3, 3).eval(), (torch.randn(2, 3),), dynamo=True, opset_version=23, verbose=False
    )
    assert program is not None
    onnx_ir.save(program.model, tmp_path / "model.onnx")
    assert not write_cuda_graph("test", tmp_path / "model.onnx", tmp_path / "model.cuda.onnx")
    assert not (tmp_path / "model.cuda.onnx").exists()
