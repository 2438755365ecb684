"""What single files say of their training: prediction type, zero terminal SNR, few steps, and what it left in them."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from safetensors.torch import save_file
from torch import Tensor

from ldmrt.model import load
from ldmrt.model.checkpoint.families import Family
from ldmrt.model.checkpoint.file_notes import FEW_STEPS, for_few_steps
from ldmrt.runtime import LdmrtError, LdmrtWarning
from ldmrt.runtime.samplers.config import KEYS
from ldmrt.runtime.samplers.registry import plan_from_config

from ...support.exact_diffusers import scheduler_class
from ...support.ldm import as_written, networks

EMPTY = torch.empty(0)
State = dict[str, Tensor]
Notes = dict[str, str]


@pytest.fixture(scope="module")
def made() -> dict[str, State]:
    return {}


def scheduler_of(
    family: Family, vocabulary: Path, made: dict[str, State], notes: Notes | None = None,
    more: State | None = None, file: str = "model.safetensors", **how: Any,
) -> dict[str, Any]:  # fmt: skip
    """The scheduler's config of a narrow single file with this metadata and these tensors beside its own."""
    if family.name not in made:
        made[family.name] = as_written(family, networks(family))
    path = vocabulary.parent / file
    save_file({**made[family.name], **(more or {})}, path, notes)
    return load(path, tokenizer=vocabulary, **how).scheduler


V, SNR = {"prediction_type": "v_prediction"}, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SAID: dict[str, tuple[str, Notes, State, dict[str, Any]]] = {
    "XL says nothing": ("XL", {}, {}, {"prediction_type": "epsilon", "timestep_spacing": "leading"}),
    "XL, a marker": ("XL", {}, {"v_pred": EMPTY}, V | {"timestep_spacing": "leading"}),
    "XL, both markers": ("XL", {}, {"v_pred": EMPTY, "ztsnr": EMPTY}, V | SNR),
    "XL, markers of one number": ("XL", {}, {"v_pred": torch.ones(()), "ztsnr": torch.ones(1)}, V | SNR),
    "XL, metadata": ("XL", {"modelspec.prediction_type": "v"}, {}, V),
    "XL, metadata and marker": ("XL", {"modelspec.prediction_type": "v"}, {"ztsnr": EMPTY}, V | SNR),
    "XL, metadata of a trainer": ("XL", {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, {}, V | SNR),
    "XL, metadata says epsilon": ("XL", {"modelspec.prediction_type": "epsilon"}, {}, {"prediction_type": "epsilon"}),
    "XL, epsilon has no zero SNR": ("XL", {}, {"ztsnr": EMPTY}, {"prediction_type": "epsilon"}),
    "1.x, metadata": ("1.x", {"modelspec.prediction_type": "v"}, {}, V | {"_class_name": "PNDMScheduler"}),
    "1.x, zero SNR": ("1.x", {}, {"v_pred": EMPTY, "ztsnr": EMPTY}, V | SNR | {"_class_name": "DDIMScheduler"}),
    "2.x, metadata": ("2.x", {"modelspec.prediction_type": "epsilon"}, {}, {"prediction_type": "epsilon"}),
    "2.x of 875000 steps": ("2.x", {}, {"global_step": torch.tensor(875000)}, {"prediction_type": "epsilon"}),
    "XL, continuous noise": (
        "XL", {}, {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)},
        V | {"_class_name": "EDMEulerScheduler", "sigma_max": 120.0, "sigma_data": 1.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_a_file_is_read_for_what_it_says(
    name: str, narrow: dict[str, Family], vocabulary: Path, made: dict[str, State]
) -> None:
    family, notes, more, expected = SAID[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error", LdmrtWarning)
        found = scheduler_of(narrow[family], vocabulary, made, notes, more)
    assert {key: found.get(key) for key in expected} == pytest.approx(expected)
    assert ("rescale_betas_zero_snr" in expected) == ("rescale_betas_zero_snr" in found)
    plan_from_config(found, 4)


def test_the_user_has_the_last_word(narrow: dict[str, Family], vocabulary: Path, made: dict[str, State]) -> None:
    more = {"v_pred": EMPTY}
    found = scheduler_of(
        narrow["XL"], vocabulary, made, {}, more, prediction_type="epsilon", settings={"steps_offset": 0}
    )
    assert (found["prediction_type"], found["steps_offset"]) == ("epsilon", 0)
    with pytest.warns(LdmrtWarning, match="unknown modelspec.prediction_type 'w' is ignored"):
        found = scheduler_of(narrow["XL"], vocabulary, made, {"modelspec.prediction_type": "w"})
    assert found["prediction_type"] == "epsilon"


def test_zero_terminal_snr_is_that_of_diffusers(
    narrow: dict[str, Family], vocabulary: Path, made: dict[str, State]
) -> None:
    found = scheduler_of(narrow["XL"], vocabulary, made, {}, {"v_pred": EMPTY, "ztsnr": EMPTY})
    theirs = EulerDiscreteScheduler.from_config(found)
    theirs.set_timesteps(7)
    plan = plan_from_config(found, 7)
    # theirs keeps sigmas as float32
    np.testing.assert_allclose(plan.sigma / plan.alpha, theirs.sigmas[:-1].double().numpy(), rtol=1e-5)
    np.testing.assert_allclose(plan.t, theirs.timesteps.numpy())
    assert plan.t[0] == 999


NAMED: list[tuple[str, Notes]] = [
    ("sd_xl_turbo_1.0_fp16.safetensors", {}),
    ("sdxl_lightning_4step.safetensors", {}),
    ("Hyper-SDXL-1step-Unet.safetensors", {}),
    ("model.safetensors", {"modelspec.title": "DreamShaper XL v2 Turbo"}),
]
# By default each name in one family, and each family once or twice.
FEW = [
    pytest.param(family, *named, marks=[] if place % 3 == at else pytest.mark.slow)
    for place, named in enumerate(NAMED)
    for at, family in enumerate(("1.x", "2.x", "XL"))
]


@pytest.mark.parametrize(("family", "file", "notes"), FEW)
def test_models_of_few_steps_space_their_timesteps_from_the_end(
    file: str, notes: Notes, family: str, narrow: dict[str, Family], vocabulary: Path, made: dict[str, State]
) -> None:
    with pytest.warns(LdmrtWarning, match="is a model of few steps by its name: timestep_spacing is trailing"):
        found = scheduler_of(narrow[family], vocabulary, made, notes, file=file)
    assert (found["timestep_spacing"], found.get("prediction_type", "epsilon")) == ("trailing", "epsilon")
    assert plan_from_config(found, 1, name="euler").t[0] == 999
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LdmrtWarning)
        found = scheduler_of(
            narrow[family], vocabulary, made, notes, file=file, settings={"timestep_spacing": "linspace"}
        )
    assert found["timestep_spacing"] == "linspace"


@pytest.mark.parametrize("name", list(KEYS))
@pytest.mark.parametrize("spacing", [None, "leading", "trailing"])
def test_scheduler_for_few_steps_as_diffusers_makes_it(name: str, spacing: str | None) -> None:
    """A class without a spacing of timesteps ignores it, with a warning.

    `extract_init_dict` is how diffusers' `from_config` chooses the arguments of a scheduler. None is built: those of
    KDPM2 look up each of 1000 training timesteps when they are, and NumPy warns of their tensors every time.
    """
    config = {"_class_name": name} | ({} if spacing is None else {"timestep_spacing": spacing})
    theirs, _, _ = scheduler_class(name, float64=False).extract_init_dict({}, timestep_spacing="trailing")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ours = for_few_steps(config, "a-turbo")
    spaced = "timestep_spacing" in KEYS[name]
    assert spaced == (theirs.get("timestep_spacing") == "trailing")
    assert ours == (config | {"timestep_spacing": "trailing"} if spaced else config)
    wanted = "timestep_spacing is trailing" if spaced else f"{name} has no timestep_spacing and stays as it is"
    assert [wanted in str(one.message) for one in said] == ([] if spaced and spacing == "trailing" else [True])


@pytest.mark.parametrize(
    ("name", "few"),
    [
        ("dreamshaperXL_turboDpmppSDE", True), ("juggernautXL_v9Rdphoto2Lightning", True), ("Hyper-SD15-8steps", True),
        ("hyper_sdxl_8steps", True), ("my-hyper-model", True), ("hyperrealism_v3", False), ("hyper_realistic", False),
        ("superhyperion", False), ("sd_xl_base_1.0", False), ("Hyper 4step", True),
    ],
)  # fmt: skip
def test_names_of_models_of_few_steps(name: str, few: bool) -> None:
    assert bool(FEW_STEPS.search(name)) == few


LEFT = [
    "model_ema.decay", "model_ema.diffusion_modelinput_blocks00weight", "ema.model.weight",
    "first_stage_model.loss.logvar", "first_stage_model.loss.discriminator.main.0.weight",
    "embedding_manager.string_to_param_dict.x", "edm_mean", "edm_vpred.x", "optimizer.state.0.exp_avg",
    "optimizer_states.0.x", "cond_stage_model.transformer.vision_model.x", "conditioner.embedders.2.x",
    "first_stage_model.model_ema.decay", "lr_scheduler.x",
]  # fmt: skip
TABLES = ["betas", "alphas_cumprod", "cond_stage_model.transformer.text_model.embeddings.position_ids", "global_step"]


ALONE = [pytest.param([key], marks=pytest.mark.slow) for key in LEFT]  # together they are counted one by one


@pytest.mark.parametrize("keys", [*ALONE, LEFT, LEFT + TABLES])
def test_one_warning_counts_what_training_left(
    keys: list[str], narrow: dict[str, Family], vocabulary: Path, made: dict[str, State]
) -> None:
    more = {key: torch.ones(2) for key in keys}
    with pytest.warns(LdmrtWarning) as said:
        scheduler_of(narrow["1.x"], vocabulary, made, {}, more)
    count = len(set(keys) - set(TABLES))
    assert [
        f"model.safetensors: {count} tensors that belong to no network are skipped" in str(one.message) for one in said
    ] == [True]


def test_tables_of_the_schedule_are_no_news(
    narrow: dict[str, Family], vocabulary: Path, made: dict[str, State]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", LdmrtWarning)
        scheduler_of(narrow["1.x"], vocabulary, made, {}, {key: torch.ones(2) for key in TABLES})


def test_text_encoders_that_are_there_twice(
    narrow: dict[str, Family], vocabulary: Path, made: dict[str, State]
) -> None:
    """Merged files hold a text encoder under its old names too, or that of another family."""
    scheduler_of(narrow["1.x"], vocabulary, made)
    prefix = narrow["1.x"].texts["text_encoder"].prefix
    old = {key.replace("text_model.", ""): value + 1 for key, value in made["1.x"].items() if key.startswith(prefix)}
    with pytest.warns(LdmrtWarning, match=f"{len(old) + 1} tensors that belong to no network"):
        scheduler_of(narrow["1.x"], vocabulary, made, {}, {**old, "conditioner.embedders.0.x": torch.ones(1)})


def test_latents_that_are_normalised(narrow: dict[str, Family], vocabulary: Path, made: dict[str, State]) -> None:
    """As Playground 2.5 does: without that, colours are wrong."""
    with pytest.raises(LdmrtError, match=r"vae: .* normalises latents by edm_std"):
        scheduler_of(narrow["XL"], vocabulary, made, {}, {"edm_mean": torch.zeros(4), "edm_std": torch.full((4,), 5.0)})
