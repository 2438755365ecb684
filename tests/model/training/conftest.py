"""Checkpoints of random weights, saved by diffusers, for trainings."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ...support.pipelines import save_pipeline


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made = dict[str, Path]()

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = save_pipeline(name, tmp_path_factory.mktemp(name))
        return made[name]

    return folder
