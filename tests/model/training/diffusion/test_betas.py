"""The betas that a training from nothing chooses are those of diffusers' scheduler of the config that is written."""

from typing import Any

import diffusers
import pytest
import torch

from ldmrt.model.training.diffusion.betas import differing_betas, with_betas
from ldmrt.model.training.diffusion.levels import cumulative_alphas
from ldmrt.model.training.tasks import presets
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.samplers.schedule import BETAS

USUAL = [presets.SCHEDULER, presets.UNCONDITIONAL_SCHEDULER, presets.FLOW_SCHEDULER]


@pytest.mark.parametrize("usual", USUAL)
def test_by_default_nothing_changes(usual: dict[str, Any]) -> None:
    found = with_betas(usual, None)
    assert list(found.items()) == list(usual.items())
    assert differing_betas(found, usual) == {"beta_schedule": None, "zero_terminal_snr": None}


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("usual", USUAL[:2])
def test_levels_are_those_of_diffusers(usual: dict[str, Any], name: str, zero: bool) -> None:
    usual = {**usual, "prediction_type": "v_prediction"}
    config = with_betas(usual, name, zero_terminal_snr=zero)
    theirs = getattr(diffusers, config["_class_name"])
    assert config.keys() - {"_class_name"} <= set(theirs().config)  # which diffusers would warn of
    found = cumulative_alphas(config)
    # theirs is a product of a thousand numbers in float32
    torch.testing.assert_close(found, theirs.from_config(config).alphas_cumprod.double(), rtol=1e-4, atol=1e-6)
    assert (found[-1] == 0) == zero
    changed = {"beta_schedule": name if name != usual["beta_schedule"] else None, "zero_terminal_snr": zero or None}
    assert differing_betas(config, usual) == changed


@pytest.mark.parametrize(
    ("prediction", "name", "zero", "message"),
    [
        ("epsilon", None, True, "--zero-terminal-snr cannot be combined with --prediction epsilon"),
        ("flow_prediction", None, True, "--zero-terminal-snr cannot be combined with --prediction flow_prediction"),
        ("flow_prediction", "linear", False, "--beta-schedule cannot be combined with --prediction flow_prediction"),
    ],
)
def test_what_cannot_be_learned_is_refused(prediction: str, name: str | None, zero: bool, message: str) -> None:
    with pytest.raises(LdmrtError, match=message):
        with_betas({**presets.SCHEDULER, "prediction_type": prediction}, name, zero_terminal_snr=zero)
