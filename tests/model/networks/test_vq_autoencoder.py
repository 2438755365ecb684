"""The autoencoder with a codebook against diffusers' VQModel with the same weights."""

import io
import json
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import VQModel
from torch import Tensor

from ldmrt.model import Autoencoder
from ldmrt.model.checkpoint.checkpoint import build, class_of
from ldmrt.model.config import to_config
from ldmrt.model.networks.vq_autoencoder import Quantizer, VQAutoencoder, VQConfig
from ldmrt.runtime import LdmrtError

from ...support.pipelines import randomise
from .test_autoencoder import config as without_codes


def config(*widths: int, **change: Any) -> dict[str, Any]:
    return without_codes(*widths, **{"num_vq_embeddings": 64, **change})


CONFIGS: dict[str, dict[str, Any]] = {
    "two levels": config(8, 16),
    "CompVis/ldm-celebahq-256": config(8, 16, 24, layers_per_block=2, num_vq_embeddings=512, vq_embed_dim=3),
    "narrow codes": config(8, 16, latent_channels=4, vq_embed_dim=2),
    "wide codes": config(8, 16, latent_channels=3, vq_embed_dim=5),
    "one code": config(8, num_vq_embeddings=1),
    "no attention in the middle": config(8, 16, mid_block_add_attention=False),
    "another activation": config(8, 16, act_fn="mish"),
    "grey to colour": config(8, 16, in_channels=1),
    "two sides": config(8, 16, sample_size=(16, 24)),
    "another scale": config(8, 16, scaling_factor=0.5, force_upcast=True),
}
# Float32 on both sides: at most the order of sums differs, by 7e-7 in networks of this size.
CLOSE = 2e-5
# Squared distances here are near 1, and float32 rounds each of their few terms by 6e-8: 1e-5 is far from a tie.
GAP = 1e-5


def pair(settings: dict[str, Any]) -> tuple[VQAutoencoder, VQModel]:
    """Ours, read from their whole config, and theirs."""
    torch.manual_seed(1)
    theirs = randomise(VQModel(**settings))
    ours = VQAutoencoder(VQConfig.read(json.loads(json.dumps(dict(theirs.config))))).eval()  # lists, as in a file
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def normal(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def gaps(latents: Tensor, table: Tensor) -> Tensor:
    """By how much the two nearest vectors differ in squared distance, (B, h * w)."""
    x = latents.double().flatten(2).transpose(1, 2)
    distances = (x[:, :, None] - table.double()).square().sum(-1)
    if len(table) == 1:
        return torch.full(distances.shape[:2], torch.inf)
    nearest = distances.topk(2, largest=False).values
    return nearest[..., 1] - nearest[..., 0]


@pytest.mark.parametrize("sides", [(2, 3), (5, 7)], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_encoder_equals_diffusers(name: str, sides: tuple[int, int]) -> None:
    ours, theirs = pair(CONFIGS[name])
    f = ours.config.factor
    for rows in (1, 3):
        picture = normal(rows, ours.config.in_channels, sides[0] * f, sides[1] * f)
        found = ours.encode(picture)
        assert found.shape == (rows, ours.config.latent_width, *sides)
        assert relative(found, theirs.encode(picture).latents) <= CLOSE


@pytest.mark.parametrize("sides", [(6, 8), (5, 7)], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_codes_and_images_equal_diffusers(name: str, sides: tuple[int, int]) -> None:
    ours, theirs = pair(CONFIGS[name])
    for rows in (1, 3):
        latents = 0.2 * normal(rows, ours.config.latent_width, *sides)
        codes = ours.quantize.codes(latents)
        expected = theirs.quantize(latents)[2][2].reshape(rows, -1)
        certain = gaps(latents, theirs.quantize.embedding.weight) > GAP
        assert certain.float().mean() > 0.95
        assert torch.equal(codes[certain], expected[certain])
        same = (codes == expected).all(1)  # the decoder's attention spreads a code that flipped over its image
        assert same.any()
        assert relative(ours.decode(latents)[same], theirs.decode(latents).sample[same]) <= CLOSE


@torch.no_grad()
def test_many_codes_are_used() -> None:
    """Else the comparison above could pass on a quantizer that always answers the same."""
    ours, _ = pair(CONFIGS["two levels"])
    assert len(ours.quantize.codes(0.2 * normal(1, 3, 16, 16)).unique()) > 32


@torch.no_grad()
def test_every_vector_of_the_codebook_is_its_own_nearest() -> None:
    ours, _ = pair(CONFIGS["two levels"])
    table = ours.quantize.embedding.weight
    latents = table.T.reshape(1, 3, 8, 8)
    assert torch.equal(ours.quantize.codes(latents)[0], torch.arange(64))
    assert torch.equal(ours.quantize(latents), latents)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_half_precision_finds_the_codes_that_its_values_are_nearest_to(dtype: torch.dtype) -> None:
    quantizer = Quantizer(256, 4)
    torch.nn.init.normal_(quantizer.embedding.weight, mean=30.0, generator=torch.Generator().manual_seed(3))
    quantizer.to(dtype)
    latents = (30 + normal(2, 4, 9, 7)).to(dtype)
    table = quantizer.embedding.weight
    # Squares reach 4000, which float32 rounds by 2e-4, some times.
    certain = gaps(latents, table) > 1e-2
    assert certain.float().mean() > 0.9
    x = latents.double().flatten(2).transpose(1, 2)
    exact = (x[:, :, None] - table.double()).square().sum(-1).argmin(-1)
    assert torch.equal(quantizer.codes(latents)[certain], exact[certain])
    rounded = (table.square().sum(1) - 2 * (latents.flatten(2).transpose(1, 2) @ table.T)).argmin(-1)
    assert (rounded != exact).float().mean() > 0.5  # what the network's own precision would find


class Decode(torch.nn.Module):
    def __init__(self, model: VQAutoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents)


@pytest.mark.slow
@torch.no_grad()
def test_onnx_looks_up_without_loops() -> None:
    ours, theirs = pair(CONFIGS["two levels"])
    table = ours.quantize.embedding.weight
    free = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)
    file = io.BytesIO()
    program = torch.onnx.export(
        Decode(ours).eval(), (normal(2, 3, 5, 7),), dynamo=True, dynamic_shapes=free, opset_version=23, verbose=False
    )
    assert program is not None
    program.save(file)
    model = onnx.load_from_string(file.getvalue())
    kinds = {node.op_type for node in model.graph.node}
    assert {"ArgMin", "Gather"} <= kinds
    assert not kinds & {"Loop", "Scan", "If", "SequenceAt", "TopK"}
    session = onnxruntime.InferenceSession(file.getvalue())
    for rows, height, width in ((1, 6, 4), (3, 9, 11)):
        drawn = torch.randint(64, (rows, height, width), generator=torch.Generator().manual_seed(4))
        latents = table[drawn].permute(0, 3, 1, 2) + 1e-3 * normal(rows, 3, height, width)
        assert (gaps(latents, table) > GAP).all()  # no code is near to another
        (found,) = session.run(None, {model.graph.input[0].name: latents.numpy()})
        # the order of sums, and the fusions of ONNX Runtime
        assert relative(torch.from_numpy(np.asarray(found)), theirs.decode(latents).sample) <= CLOSE


@pytest.mark.parametrize("name", CONFIGS)
def test_config_written_back_makes_the_same_network_in_diffusers(name: str) -> None:
    theirs = VQModel(**CONFIGS[name])
    read = VQConfig.read(dict(theirs.config))
    written = json.loads(json.dumps(to_config("VQModel", read)))
    again = VQModel.from_config(written)
    assert VQConfig.read(written) == read
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
    for key in ("scaling_factor", "force_upcast", "num_vq_embeddings", "vq_embed_dim", "act_fn"):
        assert again.config[key] == theirs.config[key]


def test_defaults_are_those_of_diffusers() -> None:
    assert VQConfig.read(dict(VQModel().config)) == VQConfig() == VQConfig.read({})


def test_checkpoints_build_it_by_the_name_of_diffusers_class() -> None:
    network = build("vae", "VQModel", config(8, 16))
    assert class_of(network) == "VQModel"
    assert not isinstance(network, Autoencoder)  # whose latents are told by their mean and variance


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"norm_type": "spatial"}, "norm_type"),
        ({"lookup_from_codebook": True}, "lookup_from_codebook"),
        ({"scaling_factor": float("nan")}, "scaling_factor"),
        ({"scaling_factor": 0.0}, "scaling_factor"),
        ({"num_vq_embeddings": 0}, "num_vq_embeddings"),
        ({"num_vq_embeddings": None}, "num_vq_embeddings"),
        ({"vq_embed_dim": 0}, "vq_embed_dim"),
        ({"latent_channels": 0}, "latent_channels"),
        ({"use_quant_conv": False}, "use_quant_conv"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "down_block_types"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types"),
        ({"block_out_channels": [8, 18]}, "18"),
        ({"act_fn": "tanh"}, "act_fn"),
        ({"frobnicate": 1}, "frobnicate"),
    ],
)
def test_config_that_cannot_be_built_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in config(8, 16).items()}
    with pytest.raises(LdmrtError, match=f"vae: .*{named}"):
        VQConfig.read(settings | change)  # before a weight is made
