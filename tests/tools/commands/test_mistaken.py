"""One thing given in place of another: every command, and the library, say what it is and which command takes it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import ldmrt.runtime
from ldmrt.model import load
from ldmrt.model.checkpoint.load import load_adapter, load_autoencoder, load_controlnet
from ldmrt.model.lora.merge import read_lora
from ldmrt.model.textual_inversion.merge import read_embedding
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.files.recognise import (
    ADAPTER,
    AUTOENCODER,
    BUNDLE,
    CHECKPOINT,
    CONTROLNET,
    EMBEDDING,
    LORA,
    TRANSFORMER,
    kind_of,
)

from ...support.families.stable_diffusion_3 import save_sd3

TAKES_A_BUNDLE = (
    "generate BUNDLE x",
    "verify BUNDLE",
    "inspect BUNDLE",
    "plan BUNDLE",
    "build BUNDLE --target sm89",
    "engines list BUNDLE",
    "engines prune BUNDLE",
    "engines refit BUNDLE",
    "bench BUNDLE",
    "evaluate BUNDLE --data nowhere",
)
NAMES = {
    LORA: "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
    CHECKPOINT: "model.diffusion_model.input_blocks.0.0.weight",
    CONTROLNET: "control_model.input_hint_block.0.weight",
    EMBEDDING: "emb_params",
    AUTOENCODER: "decoder.conv_in.weight",
    TRANSFORMER: "double_blocks.0.img_mod.lin.weight",
}
COMMANDS = {
    LORA: "ldmrt export CHECKPOINT BUNDLE --lora",
    CHECKPOINT: "ldmrt export",
    CONTROLNET: "ldmrt export CHECKPOINT BUNDLE --controlnet NAME=",
    ADAPTER: "ldmrt export CHECKPOINT BUNDLE --adapter NAME=",
    EMBEDDING: "ldmrt export CHECKPOINT BUNDLE --embedding",
    AUTOENCODER: "ldmrt export CHECKPOINT BUNDLE --vae",
    TRANSFORMER: "ldmrt export CHECKPOINT BUNDLE --transformer",
    BUNDLE: "ldmrt generate",
}


def weights(folder: Path, kind: str, suffix: str) -> Path:
    """A small file of one tensor, as safetensors or by torch.save, today's or that of 2019."""
    path, state = folder / f"a file{suffix}", {NAMES[kind]: np.zeros((2, 2), np.float32)}
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        tensors = {"state_dict": {name: torch.from_numpy(array) for name, array in state.items()}}
        torch.save(tensors, path, _use_new_zipfile_serialization=suffix != ".ckpt")
    return path


def folder_of(folder: Path, kind: str) -> Path:
    """A folder with the config that says what it is."""
    names = {CONTROLNET: "ControlNetModel", ADAPTER: "T2IAdapter", AUTOENCODER: "AutoencoderKL"}
    name = {**names, TRANSFORMER: "FluxTransformer2DModel"}[kind]
    (folder / "network").mkdir()
    (folder / "network" / "config.json").write_text(json.dumps({"_class_name": name}))
    return folder / "network"


@pytest.fixture(scope="module")
def sd3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose denoiser is a transformer."""
    return save_sd3("sd3-without-t5", tmp_path_factory.mktemp("sd3") / "folder")


@pytest.mark.parametrize("words", TAKES_A_BUNDLE)
def test_a_checkpoint_is_no_bundle(ldmrt: Any, checkpoint: Path, words: str) -> None:
    ran = ldmrt(*(checkpoint if word == "BUNDLE" else word for word in words.split()))
    assert ran.error == f"error: bundle: {checkpoint} is a checkpoint, not a bundle"
    assert f"  try: ldmrt export {checkpoint} out/checkpoint" in ran.err


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".pt", ".bin"])
@pytest.mark.parametrize("kind", NAMES)
def test_files(ldmrt: Any, tmp_path: Path, kind: str, suffix: str) -> None:
    path = weights(tmp_path, kind, suffix)
    assert kind_of(path) == kind
    ran = ldmrt("generate", path, "x")
    assert f"{path} is a" in ran.error
    assert f"{kind}, not a bundle" in ran.error
    assert f"  try: {COMMANDS[kind]}" in ran.err
    assert f"'{path}'" in ran.err  # quoted for the shell: its name has a space
    with pytest.raises(LdmrtError, match="not a bundle"):
        ldmrt_open(path)
    if kind != CHECKPOINT:
        # a transformer's file is a checkpoint once it has its parts, and this one has the one weight alone
        message = "tensors are missing" if kind == TRANSFORMER else f"{kind}, not a checkpoint"
        with pytest.raises(LdmrtError, match=message):
            load(path)


GGUF = b"GGUF\3\0\0\0" + bytes(64)
USE = "  try: ldmrt export reads the .safetensors file that it was made of, also in float8"
OPTIONS = ("--vae", "--transformer", "--text-encoder", "--lora", "--embedding", "--controlnet", "--adapter")
OPTIONS += ("--ip-adapter", "--preview-decoder")


@pytest.mark.parametrize("option", [None, *OPTIONS])
@pytest.mark.parametrize("form", ["x.gguf", "x.safetensors", "folder"])
def test_gguf_is_refused_everywhere(
    ldmrt: Any, option: str | None, form: str, checkpoint: Path, sd3_folder: Path, tmp_path: Path
) -> None:
    """A file is known by its first bytes, whatever its name ends in; a folder by the names in it."""
    path, out = tmp_path / "q4" / ("x.gguf" if form == "folder" else form), tmp_path / "out"
    path.parent.mkdir()
    path.write_bytes(GGUF)
    (path.parent / "README.md").write_text("of another model")
    source = sd3_folder if option == "--transformer" else checkpoint
    given = path.parent if form == "folder" else path
    value = f"x={given}" if option in ("--controlnet", "--adapter") else given
    ran = ldmrt("export", given, out) if option is None else ldmrt("export", source, out, option, value)
    assert f"{path} is a GGUF file" in ran.error
    assert USE in ran.err
    assert not out.exists()


@pytest.mark.parametrize("part", ["transformer", "text_encoder_2"])
@pytest.mark.parametrize("whole", [True, False])
def test_gguf_in_the_place_of_a_part(ldmrt: Any, part: str, whole: bool, sd3_folder: Path, tmp_path: Path) -> None:
    """Beside its config, in a checkpoint or alone."""
    copy = Path(shutil.copytree(sd3_folder, tmp_path / "sd3"))
    for file in (copy / part).glob("*.safetensors"):
        file.unlink()
    (copy / part / "x-Q8_0.gguf").write_bytes(GGUF)
    option = ["--transformer"] if part == "transformer" else ["--text-encoder"]
    value = copy / part if part == "transformer" else f"{part}={copy / part}"
    ran = ldmrt("export", *((copy, tmp_path / "out") if whole else (sd3_folder, tmp_path / "out", *option, value)))
    assert f"{part}: {copy / part}/x-Q8_0.gguf is a GGUF file" in ran.error
    assert USE in ran.err


@pytest.mark.parametrize("words", ["generate PATH x", "inspect PATH", "info FILE"])
def test_gguf_is_no_bundle_and_no_image(ldmrt: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(GGUF)
    for given in (path, *([tmp_path] if "PATH" in words else ())):
        ran = ldmrt(*(given if word in ("PATH", "FILE") else word for word in words.split()))
        assert f"{path} is a GGUF file; expected {'an image' if 'info' in words else 'a bundle'}" in ran.error
        assert USE in ran.err


def test_gguf_beside_other_weights_is_not_looked_at(checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    for folder in (copy, copy / "unet"):
        (folder / "x.gguf").write_bytes(GGUF)
    assert load(copy).unet.config.sample_size == 8


def ldmrt_open(path: Path) -> object:
    return ldmrt.runtime.open(path)


@pytest.mark.parametrize("kind", [CONTROLNET, ADAPTER, AUTOENCODER, TRANSFORMER])
def test_folders(ldmrt: Any, tmp_path: Path, kind: str) -> None:
    path = folder_of(tmp_path, kind)
    assert kind_of(path) == kind
    for words in (("inspect", path), ("export", path, tmp_path / "out")):
        ran = ldmrt(*words)
        assert f"{kind}, not a" in ran.error
        assert COMMANDS[kind] in ran.err
    assert not (tmp_path / "out").exists()


def test_a_bundle_is_no_checkpoint(ldmrt: Any, bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for words in (
        ("export", bundle, out),
        ("verify", bundle, "--against", bundle),
        ("export", checkpoint, out, "--lora", bundle),
        ("export", checkpoint, out, "--embedding", bundle),
        ("export", checkpoint, out, "--controlnet", f"canny={bundle}"),
        ("export", checkpoint, out, "--adapter", f"canny={bundle}"),
    ):
        ran = ldmrt(*words)
        assert f"{bundle} is a bundle, not a" in ran.error
        assert f"  try: ldmrt generate {bundle}" in ran.err
        assert not out.exists()
    for read in (load, read_lora, read_embedding, load_controlnet, load_adapter, load_autoencoder):
        with pytest.raises(LdmrtError, match="is a bundle, not a"):
            read(bundle)


def test_a_checkpoint_is_no_lora(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(LdmrtError, match="is a checkpoint, not a LoRA"):
        read_lora(checkpoint)
    with pytest.raises(LdmrtError, match="is a LoRA, not a textual inversion"):
        read_embedding(weights(tmp_path, LORA, ".safetensors"))


def test_no_bundle_is_written_over_a_checkpoint(ldmrt: Any, checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert "is a checkpoint, not a bundle" in ldmrt("export", checkpoint, copy).error
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_place_inside_or_around_a_bundle(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    for path in (copy / "unet", copy / "unet" / "model.onnx", copy / "ldmrt.json", tmp_path):
        ran = ldmrt("inspect", path)
        assert ran.error == f"error: bundle: {path} is not a bundle"
        assert f"  try: {copy}, which is one" in ran.err


def test_both_in_one_folder_are_read_as_either(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    """As some models on the hub are."""
    both = Path(shutil.copytree(bundle, tmp_path / "both"))
    shutil.copytree(checkpoint, both, dirs_exist_ok=True)
    (both / "ldmrt.json").unlink()  # which holds for other files
    assert kind_of(both) == ""
    assert load(both).unet.config.sample_size == 8
    ldmrt.runtime.Bundle.open(both)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"{", b"\xff" * 100, b"PK" + b"\0" * 100])
def test_damaged_files_are_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    assert kind_of(path) == ""
