"""The tiny autoencoder against diffusers' AutoencoderTiny with the same weights."""

import json
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from ldmrt.model.checkpoint.checkpoint import build, class_of
from ldmrt.model.config import to_config
from ldmrt.model.networks.tiny_autoencoder import TinyAutoencoder, TinyConfig
from ldmrt.runtime import LdmrtError

from ...support.pipelines import randomise

LEVELS: dict[str, Any] = {"num_encoder_blocks": [1, 2], "num_decoder_blocks": [2, 1]}
SMALL: dict[str, Any] = {**LEVELS, "encoder_block_out_channels": [12, 12], "decoder_block_out_channels": [16, 16]}
CONFIGS: dict[str, dict[str, Any]] = {
    "madebyollin/taesd": {},  # diffusers' defaults
    "madebyollin/taesd3": {"latent_channels": 16},
    "two levels of two widths": SMALL,
    "one level": {
        "num_encoder_blocks": [1],
        "num_decoder_blocks": [1],
        "encoder_block_out_channels": [8],
        "decoder_block_out_channels": [8],
    },
    "a level without blocks": {**SMALL, "num_encoder_blocks": [0, 1], "num_decoder_blocks": [1, 0]},
    "another activation": {**SMALL, "act_fn": "mish"},
    "depth beside colours": {**SMALL, "in_channels": 4, "out_channels": 4},
    "another scale": {**SMALL, "scaling_factor": 0.5, "latent_magnitude": 2, "latent_shift": 0.25},
    "a shift": {**SMALL, "shift_factor": 0.25},
}
# Float32 on both sides: at most the order of sums differs.
CLOSE = 2e-5


def pair(settings: dict[str, Any]) -> tuple[TinyAutoencoder, AutoencoderTiny]:
    """Ours, read from their whole config, and theirs."""
    torch.manual_seed(1)
    theirs = randomise(AutoencoderTiny(**settings))
    ours = TinyAutoencoder(TinyConfig.read(json.loads(json.dumps(dict(theirs.config))))).eval()  # lists, as in a file
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    assert expected.std() > 0.01
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_encoder_and_decoder_equal_diffusers(name: str) -> None:
    ours, theirs = pair(CONFIGS[name])
    config = ours.config
    for rows, sides in ((1, (5, 7)), (3, (2, 3))):
        image = normal(rows, config.in_channels, *(side * config.factor for side in sides))
        encoded = ours.encode(image)
        assert encoded.shape == (rows, config.latent_width, *sides)
        assert relative(encoded, theirs.encode(image).latents) <= CLOSE
        latents = 3 * normal(rows, config.latent_width, *sides)  # some of which are squashed
        assert relative(ours.decode(latents), theirs.decode(latents).sample) <= CLOSE


@pytest.mark.parametrize("name", CONFIGS)
def test_config_written_back_makes_the_same_network_in_diffusers(name: str) -> None:
    theirs = AutoencoderTiny(**CONFIGS[name])
    read = TinyConfig.read(dict(theirs.config))
    written = json.loads(json.dumps(to_config("AutoencoderTiny", read)))
    again = AutoencoderTiny.from_config(written)
    assert TinyConfig.read(written) == read
    notes = ("_use_default_values", "_class_name")
    plain = [{k: v for k, v in network.config.items() if k not in notes} for network in (theirs, again)]
    assert json.dumps(plain[0], sort_keys=True) == json.dumps(plain[1], sort_keys=True)


def test_defaults_are_those_of_diffusers() -> None:
    assert TinyConfig.read(dict(AutoencoderTiny().config)) == TinyConfig() == TinyConfig.read({})


def test_config_of_old_releases_names_no_block_out_channels() -> None:
    assert TinyConfig.read(SMALL).block_out_channels == (16, 16)


def test_checkpoints_build_it_by_the_name_of_diffusers_class() -> None:
    assert class_of(build("vae", "AutoencoderTiny", SMALL)) == "AutoencoderTiny"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"upsample_fn": "bilinear"}, "upsample_fn"),
        ({"upsampling_scaling_factor": 4}, "upsampling_scaling_factor"),
        ({"shift_factor": "0.1"}, "shift_factor"),
        ({"scaling_factor": 0.0}, "scaling_factor"),
        ({"latent_channels": 0}, "latent_channels"),
        ({"act_fn": "tanh"}, "act_fn"),
        ({"encoder_block_out_channels": [8, 16]}, "encoder_block_out_channels"),
        ({"decoder_block_out_channels": [16, 8]}, "decoder_block_out_channels"),
        ({"decoder_block_out_channels": []}, "decoder_block_out_channels"),
        ({"encoder_block_out_channels": [8, 8, 8]}, "encoder_block_out_channels"),
        ({"num_encoder_blocks": [1]}, "num_encoder_blocks"),
        ({"num_decoder_blocks": [1, -1]}, "num_decoder_blocks"),
        ({"num_decoder_blocks": 3}, "num_decoder_blocks"),
        ({"frobnicate": 1}, "frobnicate"),
    ],
)
def test_config_that_cannot_be_built_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(LdmrtError, match=f"vae: .*{named}"):
        TinyConfig.read({**SMALL, **change})  # before a weight is made
