"""Bundles to write into."""

import shutil
from pathlib import Path

import pytest

from ldmrt.runtime.bundle.bundle import Bundle


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle to write into, in a folder of its own."""
    (tmp_path / "place").mkdir()
    return Path(shutil.copytree(bundle, tmp_path / "place" / "bundle"))


@pytest.fixture
def opened(bundle: Path, tmp_path: Path) -> Bundle:
    return Bundle.open(Path(shutil.copytree(bundle, tmp_path / "bundle")))
