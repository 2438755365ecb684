"""A bundle's manifest, and what is exported again; a stand-in writes the ONNX files, which are test_onnx's matter."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from ldmrt.export.bundle_writer import export_bundle
from ldmrt.model import Autoencoder, Checkpoint
from ldmrt.runtime import Bundle
from ldmrt.runtime.bundle.graphs import CUDA, STEP, cuda_file

ALL = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_manifest_lists_every_file(bundle: Path, loaded: Checkpoint) -> None:
    manifest = json.loads((bundle / "ldmrt.json").read_text())
    files = content(bundle)
    del files["ldmrt.json"]
    assert {"unet/model.onnx", "unet/model.onnx_data", "tokenizer/vocab.json", "model_index.json"} < files.keys()
    assert manifest["files"] == {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
    }
    assert list(manifest["components"]) == ALL
    assert manifest["scaling_factor"] == loaded.vae.config.scaling_factor
    assert manifest["prediction_type"] == loaded.scheduler["prediction_type"]
    assert json.loads((bundle / "scheduler/scheduler_config.json").read_text()) == loaded.scheduler
    assert {name.removeprefix("tokenizer/"): data for name, data in files.items() if "tokenizer/" in name} == (
        loaded.tokenizers["tokenizer"]
    )
    opened = Bundle.open(bundle)
    assert (opened.stage.space.factor, opened.stage.space.channels, opened.stage.size) == (2, 4, 16)


def test_every_graph_has_one_for_cuda(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert {"text_encoder", "unet", STEP, "vae_decoder", "vae_encoder"} <= set(opened.graphs)
    alike = {graph for graph in opened.graphs if len(opened.models(graph)) == 1}
    assert not alike & {*ALL, STEP}
    twins = {file.relative_to(bundle).as_posix() for file in bundle.rglob(f"*{CUDA}")}
    assert twins == {f"{opened.home(g)}/{cuda_file(opened.model(g)).name}" for g in set(opened.graphs) - alike}
    assert twins <= opened.manifest["files"].keys()


@pytest.mark.parametrize("links", [True, False])
def test_second_export_reuses_all(
    links: bool, bundle: Path, loaded: Checkpoint, exported: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    weights = (copy / "unet/model.onnx_data").stat().st_ino
    if not links:  # as on a file system that has none
        monkeypatch.setattr(os, "link", Mock(side_effect=OSError("no links here")))
    assert [(done.component, done.reused) for done in export_bundle(loaded, copy)] == [(name, True) for name in ALL]
    assert exported == []
    assert content(copy) == content(bundle)
    assert f"unet/model{CUDA}" in content(copy)
    assert list(tmp_path.iterdir()) == [copy]
    assert copy.stat().st_mode & 0o777 == 0o755
    assert ((copy / "unet/model.onnx_data").stat().st_ino == weights) is links, "weights took their disk twice"


@pytest.mark.usefixtures("exported")
@pytest.mark.parametrize("name", [f"unet/model{CUDA}", "unet/notes.txt"])
def test_a_file_that_was_added_stays_and_is_not_listed(loaded: Checkpoint, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out"
    list(export_bundle(loaded, folder))
    before = (folder / "ldmrt.json").read_bytes()
    (folder / name).write_bytes(b"of a stranger")
    for _ in range(2):
        assert all(done.reused for done in export_bundle(loaded, folder))
        assert (folder / name).read_bytes() == b"of a stranger"
        assert (folder / "ldmrt.json").read_bytes() == before
    assert len(Bundle.open(folder).models("unet")) == 1


def nudge(network: str, key: str) -> Callable[[Checkpoint], Any]:
    def change(checkpoint: Checkpoint) -> None:
        with torch.no_grad():
            checkpoint.networks[network].state_dict()[key].view(-1)[0].add_(1e-3)

    return change


def three_levels(checkpoint: Checkpoint) -> None:
    config = {**vars(checkpoint.vae.config), "block_out_channels": (8, 16, 16)}
    for name in ("down_block_types", "up_block_types"):
        config[name] = config[name][:1] * 3
    object.__setattr__(checkpoint, "vae", Autoencoder(type(checkpoint.vae.config)(**config)))


VAE = ["vae_decoder", "vae_encoder"]
CHANGES: dict[str, tuple[Callable[[Checkpoint], Any], list[str]]] = {
    "U-Net weight": (nudge("unet", "conv_in.weight"), ["unet"]),
    "text weight": (nudge("text_encoder", "final_layer_norm.bias"), ["text_encoder"]),
    "decoder weight": (nudge("vae", "post_quant_conv.bias"), ["vae_decoder"]),
    "encoder weight": (nudge("vae", "quant_conv.bias"), ["vae_encoder"]),
    "scaling factor": (lambda c: object.__setattr__(c.vae.config, "scaling_factor", 1.0), VAE),
    "scheduler": (lambda c: c.scheduler.update(beta_end=0.02), []),
    "tokenizer": (lambda c: c.tokenizers["tokenizer"].update({"more.json": b"{}"}), []),
    "factor": (three_levels, ["unet", *VAE]),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_only_what_changed_is_exported_again(
    name: str, loaded: Checkpoint, exported: list[str], tmp_path: Path
) -> None:
    list(export_bundle(loaded, tmp_path / "out"))
    assert exported == ALL
    before = content(tmp_path / "out")
    exported.clear()
    change, anew = CHANGES[name]
    change(loaded)
    done = list(export_bundle(loaded, tmp_path / "out"))
    assert exported == anew
    assert [row.component for row in done if not row.reused] == anew
    after = content(tmp_path / "out")
    assert after["ldmrt.json"] != before["ldmrt.json"]
    kept = [file for file in before if file.split("/")[0] in set(ALL) - set(anew)]
    assert all(after[file] == before[file] for file in kept)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
