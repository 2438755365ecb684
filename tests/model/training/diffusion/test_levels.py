"""The noise schedule that a checkpoint is trained further on is that of its own scheduler in diffusers."""

import inspect
from typing import Any

import diffusers
import pytest
import torch

from ldmrt.model.training.diffusion.levels import OF_BETAS, check_epsilon, cumulative_alphas
from ldmrt.model.training.diffusion.objective import Objective
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.samplers.config import KEYS

SCHEDULERS = sorted(
    name for name in dir(diffusers.schedulers) if name.endswith("Scheduler") and not name.startswith("Flax")
)


def scheduler(name: str, **config: Any) -> Any:
    return getattr(diffusers, name).from_config(config)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy, in theirs
@pytest.mark.parametrize(
    "config", [{}, {"beta_schedule": "scaled_linear"}, {"num_train_timesteps": 500, "beta_end": 0.01}]
)
@pytest.mark.parametrize("name", OF_BETAS)
def test_missing_keys_have_the_defaults_of_the_class(name: str, config: dict[str, Any]) -> None:
    expected = scheduler(name, **config).alphas_cumprod.double()
    found = cumulative_alphas({"_class_name": name, **config})
    # theirs is a product of up to 1000 numbers in float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name not in OF_BETAS])
def test_other_schedulers_are_refused(name: str) -> None:
    with pytest.raises(LdmrtError, match=f"the noise schedule of {name} is not one of betas"):
        Objective.of({"_class_name": name}, "cpu")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_flow_is_read_from_the_classes_that_have_it(name: str) -> None:
    config = {"_class_name": name, "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    theirs = getattr(diffusers, name, None)
    knows = theirs is not None and "flow_shift" in inspect.signature(theirs).parameters
    if knows and name in KEYS:
        assert Objective.of(config, "cpu").sigma[499] == 0.75
    else:
        with pytest.raises(LdmrtError, match=f"the levels of a flow are not read from {name}"):
            Objective.of(config, "cpu")


def test_networks_of_noise_levels_are_refused() -> None:
    config = {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}
    with pytest.raises(LdmrtError, match="given noise levels cannot be trained on timesteps"):
        Objective.of(config, "cpu")


def test_keys_that_the_class_does_not_know_count() -> None:
    config = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    expected = cumulative_alphas({"_class_name": "DDIMScheduler", **config})
    assert torch.equal(cumulative_alphas({"_class_name": "PNDMScheduler", **config}), expected)
    assert expected[-1] == 0
    check_epsilon("v_prediction", 0.0)
    with pytest.raises(LdmrtError, match="cannot be combined with prediction_type epsilon"):
        check_epsilon("epsilon", 0.0)
