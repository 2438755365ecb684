"""What the tests of transformers share: a checkpoint of each family and its bundle."""

from pathlib import Path

import pytest

from ldmrt.export.bundle_writer import export_bundle
from ldmrt.model import load

from ...support.families.flux import save_flux
from ...support.families.stable_diffusion_3 import EXPORTED, save_sd3


@pytest.fixture(scope="session")
def sd3_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Stable Diffusion 3.5 with T5, as diffusers saves it."""
    return save_sd3(EXPORTED, tmp_path_factory.mktemp("sd3-checkpoint") / EXPORTED)


@pytest.fixture(scope="session")
def sd3_bundle(sd3_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle in float32, without a certificate."""
    return exported(sd3_checkpoint, tmp_path_factory.mktemp("sd3-bundle") / "bundle")


@pytest.fixture(scope="session")
def flux_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a FLUX.1 dev, as diffusers saves it."""
    return save_flux("dev", tmp_path_factory.mktemp("flux-checkpoint") / "dev")


@pytest.fixture(scope="session")
def flux_bundle(flux_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle in float32, without a certificate."""
    return exported(flux_checkpoint, tmp_path_factory.mktemp("flux-bundle") / "bundle")


def exported(checkpoint: Path, folder: Path) -> Path:
    for _ in export_bundle(load(checkpoint), folder):
        pass
    return folder
