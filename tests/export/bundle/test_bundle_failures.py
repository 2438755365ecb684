"""A bundle is written as a whole or not at all, and takes the place of nothing else."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldmrt.export.bundle_writer import export_bundle
from ldmrt.model import Checkpoint
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.files import swap

from ..conftest import model_of

ALL = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fail(monkeypatch: pytest.MonkeyPatch, exported: list[str], where: str) -> None:
    if where != "swap":
        exported.append(f"!{where}")
        return
    rename = os.rename

    def refuse(source: Path, target: Path) -> None:
        if Path(source).suffix == ".tmp":
            raise OSError("no space left on device")
        rename(source, target)

    monkeypatch.setattr(swap, "_exchange", lambda *_: False)  # as on a file system without
    monkeypatch.setattr(os, "rename", refuse)


@pytest.mark.parametrize("where", [*ALL, "swap"])
def test_failure_leaves_the_old_bundle(
    where: str, loaded: Checkpoint, exported: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    list(export_bundle(loaded, out))
    before = content(out)
    with torch.no_grad():
        for network in loaded.networks.values():
            next(iter(network.parameters())).add_(1e-3)
        loaded.vae.decoder.conv_out.bias.add_(1e-3)
    fail(monkeypatch, exported, where)
    with pytest.raises((RuntimeError, OSError), match="no space"):
        list(export_bundle(loaded, out))
    assert content(out) == before
    assert list(tmp_path.iterdir()) == [out]


def test_an_export_that_is_left_leaves_nothing(loaded: Checkpoint, exported: list[str], tmp_path: Path) -> None:
    loop = export_bundle(loaded, tmp_path / "out")
    next(loop)
    loop.close()  # type: ignore[attr-defined]
    assert exported == ALL[:1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_bundle_is_refused_and_untouched(
    kind: str, loaded: Checkpoint, exported: list[str], tmp_path: Path
) -> None:
    thesis = tmp_path / "out" / "thesis.tex" if kind == "folder" else tmp_path / "out"
    thesis.parent.mkdir(exist_ok=True)
    thesis.write_text("mine")
    with pytest.raises(LdmrtError, match="no bundle"):
        list(export_bundle(loaded, tmp_path / "out"))
    assert thesis.read_text() == "mine"
    assert exported == []
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def edit(path: Path, key: str, value: Any) -> None:
    (path / "ldmrt.json").write_text(json.dumps(json.loads((path / "ldmrt.json").read_text()) | {key: value}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "unet/model.onnx").write_text("short"),
        lambda f: (f / "unet/model.onnx").write_bytes(model_of("unet 7")),
        lambda f: (f / "vae_encoder/model.onnx").unlink(),
        lambda f: (f / "ldmrt.json").write_text("{"),
        lambda f: (f / "ldmrt.json").write_text("[]"),
        lambda f: edit(f, "files", {"../outside": {"size": 0, "sha256": ""}}),
        lambda f: edit(f, "components", None),
        pytest.param(lambda f: edit(f, "files", [])),
        pytest.param(lambda f: edit(f, "components", dict.fromkeys(ALL))),
    ],
)
def test_damaged_bundle_is_exported_anew(
    damage: Callable[[Path], Any], loaded: Checkpoint, exported: list[str], tmp_path: Path
) -> None:
    list(export_bundle(loaded, tmp_path / "out"))
    exported.clear()
    damage(tmp_path / "out")
    assert not any(done.reused for done in export_bundle(loaded, tmp_path / "out"))
    assert exported == ALL
    assert [done.reused for done in export_bundle(loaded, tmp_path / "out")] == [True] * 4


def test_a_link_to_a_bundle_is_followed(loaded: Checkpoint, exported: list[str], tmp_path: Path) -> None:
    list(export_bundle(loaded, tmp_path / "disk" / "out"))
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    torch.nn.init.zeros_(loaded.unet.conv_in.weight)
    list(export_bundle(loaded, tmp_path / "link"))
    assert (tmp_path / "disk" / "out" / "unet" / "model.onnx").read_bytes() == model_of("unet 4")
