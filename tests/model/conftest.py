"""What the tests of single files share."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch

from ldmrt.model.checkpoint import families
from ldmrt.model.checkpoint.families import FAMILIES, Family

from ..support.families import END
from ..support.ldm import as_written, networks, small
from ..support.pipelines import tokenizer_files


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    """A folder with nothing but a vocabulary."""
    folder = tmp_path / "vocabulary"
    folder.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes(tokenizer_files(END)[name])
    return folder


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> dict[str, Family]:
    """The families made narrow, in the place of the true ones."""
    monkeypatch.setattr(families, "FAMILIES", tuple(_rows().values()))
    return _rows()


@pytest.fixture
def content(narrow: dict[str, Family]) -> dict[str, torch.Tensor]:
    """What a file of a narrow 1.x holds; change it as you like."""
    return {key: value.clone() for key, value in _content().items()}


@cache
def _rows() -> dict[str, Family]:
    size = len(json.loads(tokenizer_files(END)["vocab.json"]))
    return {family.name: small(family, size) for family in FAMILIES}


@cache
def _content() -> dict[str, torch.Tensor]:
    return as_written(_rows()["1.x"], networks(_rows()["1.x"]))
