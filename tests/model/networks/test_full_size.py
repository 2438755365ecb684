"""The names and shapes of the weights of full-size networks, and conditions that do not fit."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, DiffusionPipeline, UNet2DConditionModel

from ldmrt.model import Autoencoder, AutoencoderConfig, ControlNet, ControlNetConfig, UNet, UNetConfig
from ldmrt.runtime import LdmrtError

from ...support.families import FAMILIES, FULL_UNETS, FULL_VAE
from ...support.pipelines import networks, save_pipeline
from .test_families import inputs, unets

# The number of weights that is told of each.
WEIGHTS = {"sd15": 859_520_964, "sd21": 865_910_724, "sdxl": 2_567_463_684}


@pytest.mark.parametrize("name", FULL_UNETS)
def test_full_size(name: str) -> None:
    """Keys and shapes of the real ones, without a weight."""
    with torch.device("meta"):
        theirs = UNet2DConditionModel(**FULL_UNETS[name])
        control = ControlNetModel.from_unet(theirs, load_weights_from_unet=False)
        ours = UNet(UNetConfig.read(FULL_UNETS[name]))
        mine = ControlNet(ControlNetConfig.read(dict(control.config)))
    assert shapes(ours) == shapes(theirs)
    assert shapes(mine) == shapes(control)
    count = sum(value.numel() for value in ours.state_dict().values())
    assert count == WEIGHTS.get(name, count)


def test_full_size_autoencoder() -> None:
    with torch.device("meta"):
        ours, theirs = Autoencoder(AutoencoderConfig.read(FULL_VAE)), AutoencoderKL(**FULL_VAE)
    assert shapes(ours) == shapes(theirs)
    assert sum(value.numel() for value in ours.state_dict().values()) == 83_653_863


def shapes(network: torch.nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in network.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "left_out", "named"),
    [
        ("sdxl", "text_embeds", "text_embeds is missing"),
        ("sdxl", "time_ids", "time_ids is missing"),
    ],
)
def test_condition_that_is_missing_is_named(name: str, left_out: str, named: str) -> None:
    both, own, _ = inputs(FAMILIES[name], (4, 4))
    with pytest.raises(LdmrtError, match=named):
        unets(name)[0](**both, **{key: value for key, value in own.items() if key != left_out})


def test_conditions_that_do_not_fit_are_named() -> None:
    ours, _ = unets("sdxl")
    both, own, _ = inputs(FAMILIES["sdxl"], (4, 4))
    with pytest.raises(LdmrtError, match="text_embeds and time_ids do not fit"):
        ours(**both, text_embeds=own["text_embeds"], time_ids=own["time_ids"][:, :5])
    with pytest.raises(LdmrtError, match="time_cond_proj_dim"):
        ours(**both, **own, timestep_cond=torch.zeros(3, 12))
    with pytest.raises(LdmrtError, match="wrong number of down_residuals"):
        ours(**both, **own, down_residuals=[torch.zeros(())] * 2)


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler")  # that of 2022
@pytest.mark.parametrize("name", ["sd14-2022", "sdxl", "sdxl-refiner"])
def test_saved_pipeline_is_read_by_diffusers(name: str, tmp_path: Path) -> None:
    """The pipelines that the table saves for other tests are read back by diffusers."""
    theirs = DiffusionPipeline.from_pretrained(save_pipeline(name, tmp_path))
    assert type(theirs).__name__ == FAMILIES[name].pipeline
    for part, network in networks(FAMILIES[name]).items():
        expected, found = network.state_dict(), getattr(theirs, part).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, found[key]) for key, value in expected.items())
    assert theirs.tokenizer is None or theirs.tokenizer.pad_token == FAMILIES[name].pad
    if FAMILIES[name].text_encoder_2:
        assert theirs.tokenizer_2.pad_token == "!"
