"""Shifts of the levels and of latents that are forgotten are noticed, and `ldmrt verify` lays them where they belong.

Of Stable Diffusion 3 and FLUX.1: `shift` of the scheduler, also by the image's tokens, and the autoencoder's
`shift_factor`.
"""

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.export.parity.record import record
from ldmrt.model import Checkpoint, load
from ldmrt.model.library.flux import Pack
from ldmrt.runtime.bundle.recording import Recording
from ldmrt.runtime.samplers.noise.counter import FIRST, noise

from ...support.damage.bundle_faults import config, space, truthful
from ...support.families.compared import decibels, theirs
from ..parity.test_mutations import measured

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:.* it has no parity certificate"),
    pytest.mark.filterwarnings("ignore:request. .*is far from the model's own size"),
]
# The pipeline, latents along a side of 64 pixels, and the scheduler without its shift.
KINDS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "sd3": ("StableDiffusion3Pipeline", 32, {"shift": 1.0}),
    "flux": ("FluxPipeline", 8, {"use_dynamic_shifting": False, "shift": 1.0}),
}
ASKED = {"num_inference_steps": 5, "height": 64, "width": 64, "output_type": "np"}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(kind: str, request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(f"{kind}_checkpoint")
    return found


def test_a_shift_that_is_forgotten_is_noticed(kind: str, folder: Path) -> None:
    """Whole images agree to 60 dB with diffusers' pipeline, and without a shift to less than 50."""
    pipeline, side, unshifted = KINDS[kind]
    latents = torch.from_numpy(noise([3], FIRST, (16, side, side)))
    given = Pack()(latents) if kind == "flux" else latents
    found = theirs(folder, pipeline)("two pears", latents=given, guidance_scale=4.0, **ASKED).images
    loaded = load(folder)
    assert loaded.vae is not None
    scheduler, vae = {**loaded.scheduler, **unshifted}, loaded.vae

    def agreement(model: Checkpoint) -> float:
        drawn = torch_pipeline(model)("two pears", seed=3, guidance_scale=4.0, **ASKED).images
        return decibels(np.asarray(drawn), found)

    assert agreement(loaded) >= 60
    assert agreement(replace(loaded, scheduler=scheduler)) < 50
    vae.config = replace(vae.config, shift_factor=None)
    assert agreement(loaded) < 50


@cache
def recorded(folder: Path) -> Recording:
    return record(load(folder), "two pears", side=64)


@pytest.mark.slow(minutes=1)
@pytest.mark.parametrize("culprit", ["", "scheduler", "decoding"])
def test_verify_lays_it_where_it_belongs(
    culprit: str, kind: str, folder: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The shift of latents is added before they are decoded, after all that is measured alone."""
    bundle = tmp_path / "bundle"
    shutil.copytree(request.getfixturevalue(f"{kind}_bundle"), bundle)
    if culprit == "scheduler":
        config("scheduler/scheduler_config.json", **KINDS[kind][2])(bundle)
    elif culprit == "decoding":
        space(shift_factor=0.0)(bundle)
    truthful(bundle)
    certificate = measured(bundle, recorded(folder))
    assert certificate.culprit == culprit
    assert certificate.within == (culprit == "")
    assert all(figure.within for figure in certificate.figures)
