"""What the tests of transformers share: a checkpoint of each family and its bundle."""

from pathlib import Path

import pytest

from ldmrt.export.bundle_writer import export_bundle
from ldmrt.model import load

from ...conftest import made_once
from ...support.families.compared import Saved
from ...support.families.flux import save_flux
from ...support.families.pixart import save_pixart
from ...support.families.sana import save_sana
from ...support.families.stable_diffusion_3 import EXPORTED, save_sd3
from ...support.families.z_image import save_z_image


@pytest.fixture(scope="session")
def sd3_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Stable Diffusion 3.5 with T5, as diffusers saves it."""
    return made_once(tmp_path_factory, "sd3/checkpoint", lambda folder: save_sd3(EXPORTED, folder))


@pytest.fixture(scope="session")
def sd3(sd3_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The folders of checkpoints of Stable Diffusion 3 and 3.5, each saved when it is first asked for."""
    return Saved(save_sd3, tmp_path_factory.mktemp("sd3"), **{EXPORTED: sd3_checkpoint})


@pytest.fixture(scope="session")
def sd3_bundle(sd3_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle in float32, without a certificate."""
    return made_once(tmp_path_factory, "sd3/bundle", lambda folder: export(sd3_checkpoint, folder))


@pytest.fixture(scope="session")
def flux_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a FLUX.1 dev, as diffusers saves it."""
    return made_once(tmp_path_factory, "flux/checkpoint", lambda folder: save_flux("dev", folder))


@pytest.fixture(scope="session")
def flux(flux_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The folders of checkpoints of FLUX.1, each saved when it is first asked for."""
    return Saved(save_flux, tmp_path_factory.mktemp("flux"), dev=flux_checkpoint)


@pytest.fixture(scope="session")
def flux_bundle(flux_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle in float32, without a certificate."""
    return made_once(tmp_path_factory, "flux/bundle", lambda folder: export(flux_checkpoint, folder))


@pytest.fixture(scope="session")
def pixart_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a PixArt-Sigma, as diffusers saves it."""
    return made_once(tmp_path_factory, "pixart/checkpoint", lambda folder: save_pixart("sigma", folder))


@pytest.fixture(scope="session")
def pixart_bundle(pixart_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle in float32, without a certificate."""
    return made_once(tmp_path_factory, "pixart/bundle", lambda folder: export(pixart_checkpoint, folder))


@pytest.fixture(scope="session")
def sana_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Sana, as diffusers saves it."""
    return made_once(tmp_path_factory, "sana/checkpoint", lambda folder: save_sana("sana", folder))


@pytest.fixture(scope="session")
def sana_bundle(sana_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle in float32, without a certificate."""
    return made_once(tmp_path_factory, "sana/bundle", lambda folder: export(sana_checkpoint, folder))


@pytest.fixture(scope="session")
def z_image_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Z-Image-Turbo, as diffusers saves it."""
    return made_once(tmp_path_factory, "z_image/checkpoint", lambda folder: save_z_image("turbo", folder))


@pytest.fixture(scope="session")
def z_image_bundle(z_image_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle in float32, without a certificate."""
    return made_once(tmp_path_factory, "z_image/bundle", lambda folder: export(z_image_checkpoint, folder))


def export(checkpoint: Path, folder: Path) -> None:
    for _ in export_bundle(load(checkpoint), folder):
        pass
