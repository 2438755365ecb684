"""Everything that is read of a bundle is a plain file inside it, whatever manifest, links and graphs say."""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ldmrt.runtime
from ldmrt.runtime import Bundle, LdmrtError
from ldmrt.runtime.bundle.contents import is_inside, is_name
from ldmrt.runtime.bundle.external_data import locations
from ldmrt.runtime.bundle.manifest import MANIFEST

OUTSIDE = [
    "../x",
    "/etc/passwd",
    "unet/../../x",
    "..\\x",
    "C:\\x",
    "C:/x",
    "\\\\server\\x",
    "//server/x",
    "x\0",
    "x\ny",
]
OUTSIDE += ["\x1b[31munet", "unet/./model.onnx", "unet//model.onnx", "./x", ".", "", "/", "x" * 1001, "a:b"]
OUTSIDE += ["\x9b0m"]


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((path / MANIFEST).read_text())
    change(content)
    (path / MANIFEST).write_text(json.dumps(content))


def list_anew(path: Path) -> None:
    """Write the manifest's files anew, as somebody does who has changed them."""
    files = {one.relative_to(path).as_posix(): one.read_bytes() for one in path.rglob("*") if one.is_file()}
    del files[MANIFEST]
    entries = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    edit(path, lambda m: m.update(files=entries))


def refused(path: Path) -> str:
    """One or two lines without anything that moves the cursor."""
    with pytest.raises(LdmrtError) as raised:
        ldmrt.runtime.open(path)
    message = str(raised.value)
    assert len(message.splitlines()) <= 2
    assert message.replace("\n  try: ", "").isprintable()
    return message


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_of_files(copy: Path, name: str) -> None:
    edit(copy, lambda m: m["files"].update({name: {"size": 0, "sha256": ""}}))
    assert "expected a path inside the bundle" in refused(copy)


@pytest.mark.parametrize("name", [*OUTSIDE, "é", "unet x", "-unet", ".unet", "a" * 101, "a..b", "un/et"])
@pytest.mark.parametrize("kind", ["component", "graph"])
def test_names_of_components_and_graphs(copy: Path, name: str, kind: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        rows = manifest["components"]
        if kind == "component":
            rows[name] = rows["unet"] | {"graphs": {}}
        else:
            rows["unet"]["graphs"][name] = {key: rows["unet"][key] for key in ("inputs", "outputs")}

    edit(copy, change)
    assert "unsupported name" in refused(copy)


@pytest.mark.parametrize("name", ["unet", "UNet", "vae_decoder", "STEP"])
def test_a_graph_is_no_other_component(copy: Path, name: str) -> None:
    edit(copy, lambda m: m["components"]["vae_encoder"]["graphs"].update({name: m["components"]["unet"]}))
    assert "a name for each component and graph" in refused(copy)


@pytest.mark.parametrize("name", ["unet", "controlnet_canny-v1.1", "text_encoder_2", "vae_decoder_fp32"])
def test_good_names(name: str) -> None:
    assert is_name(name)
    assert is_inside(f"{name}/model.onnx_data")


WHERE = ["unet", "unet/model.onnx", "unet/model.onnx_data", "unet/config.json", "tokenizer", "tokenizer/vocab.json"]
WHERE += ["scheduler", "scheduler/scheduler_config.json", "model_index.json", "unet/step.onnx", "vae_decoder"]
WHERE += ["unet/model.cuda.onnx", "unet/step.cuda.onnx"]


@pytest.mark.parametrize("name", WHERE)
@pytest.mark.parametrize("manifest", [True, False])
def test_links_that_lead_out(copy: Path, tmp_path: Path, name: str, manifest: bool) -> None:
    """Of files and of folders, whatever the content."""
    if not manifest:
        (copy / MANIFEST).unlink()
    if name.startswith("unet/step") and not manifest:
        return  # without a manifest nobody knows of it
    outside = tmp_path / "outside"
    shutil.move(copy / name, outside)
    (copy / name).symlink_to(outside)
    assert "is a link that leads out of the bundle" in refused(copy)


@pytest.mark.parametrize("name", ["unet", "unet/model.onnx_data", "tokenizer/vocab.json"])
def test_links_that_stay_inside(copy: Path, name: str) -> None:
    (copy / name).rename(copy / "elsewhere")
    (copy / name).symlink_to(copy / "elsewhere")
    Bundle.open(copy)


@pytest.mark.parametrize("manifest", [True, False])
def test_a_snapshot_of_the_hub_opens(bundle: Path, tmp_path: Path, manifest: bool) -> None:
    """Its files are links into the cache's store of the same repository."""
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / "0123"
    (repository / "blobs").mkdir(parents=True)
    for number, file in enumerate(one for one in sorted(bundle.rglob("*")) if one.is_file()):
        if file.name == MANIFEST and not manifest:
            continue
        shutil.copy(file, repository / "blobs" / str(number))
        link = snapshot / file.relative_to(bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(repository / "blobs" / str(number), link.parent))
    pipeline = ldmrt.runtime.open(snapshot)
    assert pipeline("a cat", num_inference_steps=1).pixels.shape == (1, 16, 16, 3)
    pipeline.close()
    (snapshot / "unet" / "config.json").unlink()
    shutil.copy(bundle / "unet" / "config.json", tmp_path / "config.json")
    (snapshot / "unet" / "config.json").symlink_to(tmp_path / "config.json")
    assert "is a link that leads out of the bundle" in refused(snapshot)


class Refused(Exception):
    """A bundle was refused in one or two short lines."""


def opened_or_refused(path: Path) -> Bundle:
    """The bundle; or `Refused`, where it is refused as it should be."""
    try:
        return Bundle.open(path)
    except LdmrtError as error:
        if len(str(error)) > 2000 or len(str(error).splitlines()) > 2:
            raise
        raise Refused from error


def make(kind: str, path: Path) -> None:
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        at = os.getcwd()
        os.chdir(path.parent)  # a socket's path is short
        socket.socket(socket.AF_UNIX).bind(path.name)
        os.chdir(at)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "circle":
        path.symlink_to(path.name)
    else:
        path.mkdir()


FILES = ["ldmrt.json", "unet/model.onnx", "unet/model.onnx_data", "unet/config.json", "model_index.json"]
FILES += ["tokenizer/vocab.json", "scheduler/scheduler_config.json", "unet/step.onnx", "unet/model.cuda.onnx"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "circle", "folder"])
def test_what_is_no_file_is_never_opened(copy: Path, name: str, kind: str) -> None:
    make(kind, copy / name)
    refused(copy)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
@pytest.mark.parametrize("name", ["unet/config.json", "unet/model.onnx_data"])
def test_nor_where_there_is_no_manifest(copy: Path, name: str, kind: str) -> None:
    (copy / MANIFEST).unlink()
    make(kind, copy / name)
    refused(copy)


@pytest.mark.parametrize("location", ["../model.oxdata", "/tmp/model.data", "no-such-file.x", "*/_ORT_MEM_ADDR"])
@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize("file", ["model.onnx", "model.cuda.onnx"])
def test_weights_elsewhere(copy: Path, location: str, manifest: bool, file: str) -> None:
    """An ONNX file may name any path as its external data."""
    graph = (copy / "unet" / file).read_bytes()
    assert locations("unet", copy / "unet" / file) == {"model.onnx_data"}
    (copy / "unet" / file).write_bytes(graph.replace(b"model.onnx_data", location.encode().ljust(15, b"x")))
    shutil.copy(copy / "unet/model.onnx_data", copy / "model.oxdata")
    if manifest:
        list_anew(copy)
    else:
        (copy / MANIFEST).unlink()
    assert f"unet: cannot load {copy / 'unet' / file}" in refused(copy)


def test_weights_that_the_manifest_does_not_list(copy: Path) -> None:
    edit(copy, lambda m: m["files"].pop("unet/model.onnx_data"))
    assert "expected weights in a file beside it; found 'model.onnx_data'" in refused(copy)


@pytest.mark.parametrize("name", ["unet/config.json", "vae_decoder/config.json", "model_index.json"])
def test_configs_that_the_manifest_does_not_list(copy: Path, name: str) -> None:
    """Of the first schema, whose stage is read from them."""
    edit(copy, lambda m: (m["files"].pop(name), m.pop("stages"), m.update(schema=1)))
    assert f"the manifest does not list {name}" in refused(copy)


def test_what_is_not_listed_is_not_read(copy: Path) -> None:
    """A word, a tokenizer, a network and a graph for CUDA that somebody has added."""
    before = Bundle.open(copy)
    (copy / "tokenizer" / "added_tokens.json").write_text('{"evil": 7}')
    shutil.copytree(copy / "tokenizer", copy / "tokenizer_2")
    shutil.copytree(copy / "unet", copy / "controlnet_evil")
    (copy / "unet" / "more_data").write_bytes(b"")
    edit(copy, lambda m: m["files"].pop("unet/model.cuda.onnx"))
    after = Bundle.open(copy)
    assert after.models("unet") == (copy / "unet" / "model.onnx",)
    assert after.tokenizers == before.tokenizers
    assert after.components == before.components
    assert after.weights("unet") == before.weights("unet")


def deep(key: str) -> str:
    return f'{{"{key}": ' + "[" * 100000


@pytest.mark.parametrize("content", [deep("schema"), "[" * 100000, "1e400", "null", '{"schema": 1e400}', "9" * 10000])
def test_absurd_manifests(copy: Path, content: str) -> None:
    (copy / MANIFEST).write_text(content)
    refused(copy)


@pytest.mark.parametrize("kind", ["files", "components", "graphs"])
def test_too_many_entries(copy: Path, kind: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        names = [f"n{number}" for number in range(10**4)]
        if kind == "files":
            manifest["files"] |= {name: {"size": 0, "sha256": ""} for name in names}
        elif kind == "components":
            manifest["components"] |= {name: {"inputs": [], "outputs": []} for name in names}
        else:
            manifest["components"]["unet"]["graphs"] |= {name: {"inputs": [], "outputs": []} for name in names}

    edit(copy, change)
    assert "at most" in refused(copy)
