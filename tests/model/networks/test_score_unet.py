"""The networks of score SDEs (NCSN++) against diffusers' with the same weights: their parts, and the whole."""

import json
import math
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.downsampling import FirDownsample2D, downsample_2d
from diffusers.models.embeddings import GaussianFourierProjection
from diffusers.models.unets import unet_2d_blocks
from diffusers.models.upsampling import FirUpsample2D, upsample_2d
from torch import Tensor

from ldmrt.model.config import to_config
from ldmrt.model.networks.plain_unet import PlainUNet, PlainUNetConfig
from ldmrt.model.networks.score.fir import fir_double, fir_halve
from ldmrt.model.networks.score.fourier import GaussianFourier
from ldmrt.model.networks.score.skip_levels import SkipDown, SkipUp
from ldmrt.runtime import LdmrtError

from .test_plain_unet import TWO, pair, relative
from .unets import CLOSE

DOWN, UP = ("AttnSkipDownBlock2D", "SkipDownBlock2D"), ("AttnSkipUpBlock2D", "SkipUpBlock2D")
SKIP: dict[str, Any] = {  # as diffusers' own test of it, which is a small google/ncsnpp-celebahq-256
    "block_out_channels": (32, 64, 64, 64),
    "layers_per_block": 1,
    "time_embedding_type": "fourier",
    "norm_eps": 1e-6,
    "norm_num_groups": None,
    "mid_block_scale_factor": math.sqrt(2.0),
    "attention_head_dim": None,
    "down_block_types": (DOWN[1], DOWN[0], DOWN[1], DOWN[1]),
    "up_block_types": (UP[1], UP[1], UP[0], UP[1]),
}
SMALL: dict[str, Any] = SKIP | {
    "block_out_channels": (32, 32),
    "down_block_types": DOWN[::-1],
    "up_block_types": UP,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "google/ncsnpp-celebahq-256": SKIP,
    "two levels": SMALL,
    "two layers, widths that are no powers": SMALL
    | {"block_out_channels": (12, 96), "layers_per_block": 2, "up_block_types": UP[1:] * 2},
    "heads": SKIP | {"attention_head_dim": 8},
    "groups of the middle and the end": SKIP | {"norm_num_groups": 8},
    "other groups in the middle": SMALL | {"attn_norm_num_groups": 4},
    "scale and shift": SMALL | {"resnet_time_scale_shift": "scale_shift"},
    "another activation": SMALL | {"act_fn": "gelu"},
    "no scale in the middle": SMALL | {"mid_block_scale_factor": 1},
    "no middle": SMALL | {"mid_block_type": None},
    "no attention in the middle": SMALL | {"add_attention": False},
    "one level": SMALL | {"block_out_channels": (32,), "down_block_types": DOWN[:1], "up_block_types": UP[:1]},
    "sinusoids of timesteps": SMALL | {"time_embedding_type": "positional"},
    "images from 0 to 1": SMALL | {"center_input_sample": True},
    "a class": SMALL | {"num_class_embeds": 10},
    "a noise level, without images beside": TWO | {"time_embedding_type": "fourier"},
    "a noise level, its sinusoids' settings": TWO | {"time_embedding_type": "fourier", "flip_sin_to_cos": False},
    "a scale in the middle, without images beside": TWO | {"mid_block_scale_factor": math.sqrt(2.0)},
}
LEVELS = torch.tensor([0.01, 1.7, 1348.0])


def randn(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (2, 5)], ids=str)
def test_filters_are_those_of_diffusers(size: tuple[int, int]) -> None:
    x = randn(2, 5, *size)
    taps = (1, 3, 3, 1)
    for found, expected in (
        (fir_halve(x), (downsample_2d(x, taps), FirDownsample2D(5)(x))),
        (fir_double(x), (upsample_2d(x, taps), FirUpsample2D(5)(x))),
    ):
        for one in expected:  # 16 products and their sum in float64, in another order
            torch.testing.assert_close(found, one, rtol=0, atol=1e-15 * 16 * 4)


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (6, 5)], ids=str)
def test_doubling_to_a_size_ends_where_the_filter_meets_zeros(size: tuple[int, int]) -> None:
    """Of an odd side one value more: written plainly, with the zeros between and around."""
    x, (h, w) = randn(1, 2, size[0] // 2, size[1] // 2), size
    sparse = torch.zeros(1, 2, h + 5, w + 5).double()
    sparse[:, :, 2 : 2 + 2 * (h // 2) : 2, 2 : 2 + 2 * (w // 2) : 2] = x
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]).double() / 4
    kernel = torch.outer(taps, taps)[None, None].expand(2, 1, 4, 4)
    expected = torch.nn.functional.conv2d(sparse, kernel, groups=2)[:, :, :h, :w]
    torch.testing.assert_close(fir_double(x, torch.Size(size)), expected, rtol=0, atol=1e-15 * 16 * 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_of_a_level_are_those_of_diffusers(dtype: torch.dtype) -> None:
    ours, theirs = GaussianFourier(16), GaussianFourierProjection(16, scale=16).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours.to(dtype)(LEVELS.to(dtype)), theirs(LEVELS.to(dtype)), rtol=0, atol=0)
    assert not any(weight.requires_grad for weight in ours.parameters())


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_network_equals_diffusers(name: str) -> None:
    ours, theirs = pair(CONFIGS[name])
    ours, theirs = ours.double(), theirs.double()
    for size in ((16, 24), (40, 8)):  # theirs takes no odd sides: it concatenates features of other sizes
        sample = randn(3, 3, *size)
        for rows in (3, 1):
            given = {} if ours.config.num_class_embeds is None else {"class_labels": torch.tensor([9, 0, 3])[:rows]}
            # sinusoids are of float32 in theirs, and so they are in ours
            expected = theirs(sample[:rows], LEVELS[:rows].double(), **given).sample
            assert relative(ours(sample[:rows], LEVELS[:rows].double(), **given), expected) <= CLOSE


@pytest.mark.parametrize("size", [(9, 13), (15, 10)], ids=str)
@torch.no_grad()
def test_blocks_equal_diffusers_at_odd_sides(size: tuple[int, int]) -> None:
    """A block of diffusers alone takes them. Its weights are those of a level of a network."""
    ours, theirs = pair(SMALL | {"layers_per_block": 2, "block_out_channels": (32, 64, 64),
                                 "down_block_types": (*DOWN, DOWN[1]), "up_block_types": (UP[1], *UP)})  # fmt: skip
    ours, theirs = ours.double(), theirs.double()
    time, image = randn(2, 128), randn(2, 3, *size, seed=3)
    for mine, other in zip(ours.down_blocks, theirs.down_blocks, strict=True):
        assert isinstance(mine, SkipDown)
        assert type(other).__name__ in DOWN
        x = randn(2, other.resnets[0].in_channels, *size)
        found, made, skips = mine(x, time, image)
        expected, left, picture = other(x, time, image)
        assert len(skips) == len(left)
        for a, b in zip((found, made, *skips), (expected, picture, *left), strict=True):
            assert relative(a, b) <= CLOSE
    half = [side // 2 for side in size]
    for mine, other in zip(ours.up_blocks, theirs.up_blocks, strict=True):
        assert isinstance(mine, SkipUp)
        assert type(other).__name__ in UP
        width = other.resnets[0].out_channels
        below = {64: 64, 32: 64}[width]
        skips = [randn(2, resnet.in_channels - (width if i else below), *half, seed=i)
                 for i, resnet in enumerate(other.resnets)][::-1]  # fmt: skip
        x, past = randn(2, below, *half), randn(2, 3, *(side // 2 for side in half))
        for before in (None, past) if all(side % 2 == 0 for side in half) else (None,):
            found, made = mine(x, time, skips, torch.Size(2 * side for side in half), before)
            expected, left = other(x, tuple(skips), time, before)
            assert relative(found, expected) <= CLOSE
            if isinstance(left, Tensor):
                assert made is not None
                assert relative(made, left) <= CLOSE
            else:
                assert made is None


@pytest.mark.parametrize("size", [(19, 13), (9, 30)], ids=str)
@torch.no_grad()
def test_network_takes_odd_sides(size: tuple[int, int]) -> None:
    ours, _ = pair(SKIP)
    sample = randn(2, 3, *size).float()
    assert ours(sample, LEVELS[1:]).shape == sample.shape


@torch.no_grad()
def test_every_input_matters_and_the_level_divides() -> None:
    ours, _ = pair(SMALL)
    sample, base = randn(3, 3, 8, 8).float(), None
    for given in ((sample, LEVELS), (sample.roll(1, -1), LEVELS), (sample, LEVELS.roll(1))):
        out = ours(*given)
        assert base is None or (out - base).abs().max() > 1e-3 * base.abs().max()
        base = out if base is None else base
    undivided, _ = pair(SMALL)
    undivided.time_proj.register_forward_pre_hook(lambda _, args: (LEVELS,))  # type: ignore[union-attr]
    ones = undivided(sample, torch.ones(3))
    torch.testing.assert_close(ours(sample, LEVELS) * LEVELS[:, None, None, None], ones)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_written_back_makes_the_same_network_in_diffusers(name: str) -> None:
    with torch.device("meta"):
        theirs = UNet2DModel(**CONFIGS[name])
        config = PlainUNetConfig.read(dict(theirs.config))
        written = to_config("UNet2DModel", config)
        again = UNet2DModel.from_config(json.loads(json.dumps(written)))
    assert PlainUNetConfig.read(written) == config == PlainUNetConfig.read(CONFIGS[name])
    shapes = [{key: value.shape for key, value in one.state_dict().items()} for one in (again, theirs)]
    assert shapes[0] == shapes[1]


def test_full_size_has_the_tensors_of_diffusers() -> None:
    """The config of google/ncsnpp-celebahq-256, without its weights."""
    attending, levels = 4, (128, 128, 256, 256, 256, 256, 256)
    config = SKIP | {
        "block_out_channels": levels,
        "layers_per_block": 2,
        "sample_size": 256,
        "down_block_types": [DOWN[level != attending] for level in range(len(levels))],
        "up_block_types": [UP[level != attending] for level in reversed(range(len(levels)))],
    }
    with torch.device("meta"):
        ours, theirs = PlainUNet.from_config(config), UNet2DModel(**config)
    shapes = [{key: value.shape for key, value in one.state_dict().items()} for one in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert sum(value.numel() for value in ours.state_dict().values()) > 60e6


def test_configs_of_other_networks_are_written_as_before() -> None:
    """So that the hashes of bundles stay: without the fields that are new."""
    assert not {"time_embedding_type", "mid_block_scale_factor"} & to_config("UNet2DModel", PlainUNetConfig()).keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 4}, "config has an invalid in_channels; expected 3 beside Skip blocks; found 4"),
        ({"out_channels": 6}, "config has an invalid out_channels; expected 3 beside Skip blocks; found 6"),
        ({"up_block_types": ["UpBlock2D", UP[1]]}, "UpBlock2D in up_block_types cannot be combined with SkipDown"),
        ({"down_block_types": ["DownBlock2D"] * 2}, "DownBlock2D in down_block_types cannot be combined with AttnSkip"),
        ({"down_block_types": ["SkipDown", DOWN[1]]}, "unsupported SkipDown in down_block_types"),
        (
            {"block_out_channels": [8, 40], "up_block_types": UP[1:] * 2},
            "block_out_channels 40 cannot be split; expected a multiple of 32 groups",
        ),
        (
            {"block_out_channels": [8, 32]},
            "block_out_channels 40 cannot be split; expected a multiple of 32 groups; found (8, 32), of which two",
        ),
        ({"block_out_channels": [3, 32]}, "block_out_channels 3 cannot be split; expected at least 4"),
        ({"block_out_channels": [34, 32]}, "block_out_channels 34 cannot be split; expected a multiple of 8 groups"),
        ({"norm_num_groups": 5}, "block_out_channels 32 cannot be split; expected a multiple of 5 groups"),
        ({"norm_num_groups": 0}, "invalid norm_num_groups"),
        ({"attention_head_dim": 33}, "block_out_channels 32 cannot be split"),
        ({"mid_block_scale_factor": -1}, "invalid mid_block_scale_factor"),
        ({"time_embedding_type": "learned"}, "unsupported time_embedding_type"),
        ({"block_out_channels": [8]}, "down_block_types does not fit block_out_channels"),
    ],
)  # fmt: skip
def test_config_that_cannot_be_built_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    config = {key: list(value) if isinstance(value, tuple) else value for key, value in (SMALL | change).items()}
    with pytest.raises(LdmrtError) as refused:
        PlainUNetConfig.read(config)
    assert message in str(refused.value)
    assert refused.value.where == "unet"


def test_groups_that_follow_widths_are_for_these_levels_alone() -> None:
    with pytest.raises(LdmrtError, match="unet: config has an invalid norm_num_groups; expected a number"):
        PlainUNetConfig.read(TWO | {"norm_num_groups": None})


def test_network_is_built_by_the_name_of_its_class() -> None:
    assert isinstance(PlainUNet.from_config(SMALL), PlainUNet)
    assert unet_2d_blocks.SkipDownBlock2D.__name__ in PlainUNetConfig.downs
