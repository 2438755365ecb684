"""What the tests of the bundle share."""

from pathlib import Path

import pytest

from ldmrt.export import bundle_writer
from ldmrt.export.components.table import Component
from ldmrt.model import Checkpoint, load


def model_of(text: str) -> bytes:
    """An ONNX file that holds nothing but its doc_string."""
    return bytes([6 << 3 | 2, len(text)]) + text.encode()


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what the stand-in exported; "!NAME" put in front makes it fail there."""
    names: list[str] = []

    def stand_in(component: Component, folder: Path) -> Path:
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(model_of(f"{component.name} {len(names)}"))
        if f"!{component.name}" in names:
            raise RuntimeError("no space left on device")
        names.append(component.name)
        return folder / "model.onnx"

    monkeypatch.setattr(bundle_writer, "to_onnx", stand_in)
    return names


@pytest.fixture
def loaded(checkpoint: Path) -> Checkpoint:
    return load(checkpoint)
