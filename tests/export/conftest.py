"""What the tests of the bundle share."""

import json
import shutil
from dataclasses import astuple
from pathlib import Path

import pytest

from ldmrt.export import bundle_writer
from ldmrt.export.components.table import Component, components
from ldmrt.export.graph.unet_halves import cut
from ldmrt.model import Checkpoint, load
from ldmrt.runtime.files.reading import sha256


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


@pytest.fixture(scope="module")
def halves(bundle: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with its U-Net cut in two."""
    folder = tmp_path_factory.mktemp("halves") / "bundle"
    shutil.copytree(bundle, folder)
    made = cut(folder / "unet" / "model.onnx", components(load(checkpoint))["unet"])
    manifest = json.loads((folder / "ldmrt.json").read_text())
    for name, (inputs, outputs) in made.items():
        ends = {"inputs": [astuple(one) for one in inputs], "outputs": [astuple(one) for one in outputs]}
        manifest["components"]["unet"]["graphs"][name] = ends
        path = folder / "unet" / f"{name}.onnx"
        manifest["files"][f"unet/{name}.onnx"] = {"size": path.stat().st_size, "sha256": sha256(path)}
    (folder / "ldmrt.json").write_text(json.dumps(manifest))
    return folder
