"""What the tests of Stable Diffusion 3 share: one checkpoint and its bundle."""

from pathlib import Path

import pytest

from ldmrt.export.bundle_writer import export_bundle
from ldmrt.model import load

from ...support.families.stable_diffusion_3 import EXPORTED, save_sd3


@pytest.fixture(scope="session")
def sd3_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Stable Diffusion 3.5 with T5, as diffusers saves it."""
    return save_sd3(EXPORTED, tmp_path_factory.mktemp("sd3-checkpoint") / EXPORTED)


@pytest.fixture(scope="session")
def sd3_bundle(sd3_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle in float32, without a certificate."""
    folder = tmp_path_factory.mktemp("sd3-bundle") / "bundle"
    for _ in export_bundle(load(sd3_checkpoint), folder):
        pass
    return folder
