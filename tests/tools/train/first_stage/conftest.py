"""Small pictures for trainings of an autoencoder."""

from pathlib import Path

import pytest

from ....support.image_files import save_noise


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of noise."""
    return save_noise(tmp_path_factory.mktemp("pictures"), 12)
