"""T2I-Adapter against diffusers' T2IAdapter with the same weights, alone and within the U-Net."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import T2IAdapter

from ldmrt.model import Adapter, AdapterConfig, UNet, UNetConfig, load_adapter
from ldmrt.model.config import to_config
from ldmrt.runtime import LdmrtError

from ...support.families import FAMILIES, FULL_UNETS
from ...support.pipelines import networks, randomise

SMALL: dict[str, Any] = {"channels": (8, 12, 16, 16), "num_res_blocks": 2, "downscale_factor": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "full": SMALL,
    "full, one width": SMALL | {"channels": (8, 8)},
    "full, grey picture": SMALL | {"in_channels": 1, "num_res_blocks": 1},
    "XL": SMALL | {"adapter_type": "full_adapter_xl"},
    "light": SMALL | {"adapter_type": "light_adapter", "channels": (8, 12, 16), "num_res_blocks": 4},
    "light, odd widths": SMALL | {"adapter_type": "light_adapter", "channels": (9, 14)},
}
# In float64 another order of sums makes 1e-14.
CLOSE = 1e-9


def pair(config: dict[str, Any]) -> tuple[Adapter, T2IAdapter]:
    """Ours, read from their whole config, and theirs."""
    torch.manual_seed(1)
    theirs = randomise(T2IAdapter(**config).double())
    ours = Adapter(AdapterConfig.read(dict(theirs.config))).double().eval()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_equals_diffusers(name: str) -> None:
    ours, theirs = pair(CONFIGS[name])
    for size in ((32, 48), (28, 36)):  # the second is odd from the first block on
        picture = torch.rand(2, ours.config.in_channels, *size, generator=torch.Generator().manual_seed(2)).double()
        found, expected = ours(picture), theirs(picture)
        assert [one.shape for one in found] == [one.shape for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert (one - other).abs().max() <= CLOSE * other.abs().max()
        assert [tuple(one.shape[1:]) for one in found] == [
            (width, *(-(-side // divisor) for side in size)) for width, divisor in ours.config.features
        ]
    written = to_config("T2IAdapter", ours.config)
    assert AdapterConfig.read(written) == ours.config
    again = T2IAdapter.from_config(written).state_dict()
    assert {key: value.shape for key, value in again.items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("sd15", {"channels": (16, 32), "downscale_factor": 2}),
        ("sdxl", {"channels": (16, 16, 32, 32), "downscale_factor": 4, "adapter_type": "full_adapter_xl"}),
    ],
)
@torch.no_grad()
def test_features_within_the_unet_equal_diffusers(family: str, config: dict[str, Any]) -> None:
    """From the picture to the U-Net's output, with a feature for the middle in XL's."""
    adapter, their_adapter = pair(config)
    row = FAMILIES[family]
    theirs = networks(replace(row, unet=row.unet | {"layers_per_block": 2}))["unet"].double()
    unet = UNet(UNetConfig.read(dict(theirs.config))).double().eval()
    unet.load_state_dict(theirs.state_dict())
    generator = torch.Generator().manual_seed(3)
    sample = torch.randn(2, 4, 12, 16, generator=generator).double()
    context = torch.randn(2, 5, unet.config.cross_attention_dim, generator=generator).double()
    picture = torch.rand(2, 3, 24, 32, generator=generator).double()
    times = torch.tensor([3.0, 700.0])
    added: dict[str, Any] = {}
    if unet.config.addition_embed_type:
        added = {"text_embeds": torch.ones(2, 20).double(), "time_ids": torch.full((2, 6), 16.0)}
    features = adapter(picture)
    found = unet(sample, times, context, adapter_residuals=features, **added)
    expected = theirs(
        sample, times, context, added_cond_kwargs=added, down_intrablock_additional_residuals=their_adapter(picture)
    ).sample
    assert (found - expected).abs().max() <= CLOSE * expected.abs().max()
    for i in range(len(features)):  # each of them counts
        less = [*features[:i], torch.zeros_like(features[i]), *features[i + 1 :]]
        other = unet(sample, times, context, adapter_residuals=less, **added)
        assert (other - found).abs().max() > 1e-3 * found.abs().max()


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("sd15", {}),
        ("sd15", {"adapter_type": "light_adapter", "channels": [320, 640, 1280], "num_res_blocks": 4}),
        ("sdxl", {"adapter_type": "full_adapter_xl", "downscale_factor": 16}),
    ],
)
def test_features_of_the_hubs_adapters_have_their_places_in_the_hubs_unets(family: str, config: dict[str, Any]) -> None:
    places = [(width, 8 * divisor) for width, divisor in UNetConfig.read(FULL_UNETS[family]).features]
    features = AdapterConfig.read(config).features
    assert features == places[: len(features)]
    assert len(features) == 4


@torch.no_grad()
def test_full_size_keys() -> None:
    with torch.device("meta"):
        for config in (
            {},
            {"adapter_type": "full_adapter_xl", "downscale_factor": 16},
            {"adapter_type": "light_adapter", "channels": [320, 640, 1280], "num_res_blocks": 4},
        ):
            ours, theirs = Adapter(AdapterConfig.read(config)).state_dict(), T2IAdapter(**config).state_dict()
            assert {key: value.shape for key, value in ours.items()} == {
                key: value.shape for key, value in theirs.items()
            }


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"adapter_type": "heavy_adapter"}, "heavy_adapter"),
        ({"frobnicate": 1}, "frobnicate"),
        ({"channels": []}, "channels"),
        ({"downscale_factor": 0}, "downscale_factor"),
        ({"adapter_type": "full_adapter_xl", "channels": [8, 8, 8, 12]}, "channels"),
        ({"adapter_type": "light_adapter", "channels": [3, 8]}, "channels"),
    ],
)
def test_config_that_cannot_be_built_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(LdmrtError, match=f"adapter: .*{named}"):
        AdapterConfig.read(SMALL | change)


def test_a_file_of_an_adapter_is_refused(tmp_path: Path) -> None:
    torch.save({"conv_in.weight": torch.ones(1)}, tmp_path / "t2iadapter_canny.pth")
    with pytest.raises(LdmrtError, match=r"adapter: cannot read .*; expected a folder .*; found a file"):
        load_adapter(tmp_path / "t2iadapter_canny.pth")
