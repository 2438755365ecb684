"""Models by their name on the hub, with a stand-in for the hub."""

import fnmatch
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from requests import Response

from ldmrt.model import load
from ldmrt.model.checkpoint import hub
from ldmrt.runtime import LdmrtError

from ...support.pipelines import save_pipeline

NAME = "somebody/a-model"


class Hub:
    """A folder that is served as the hub serves one: what is asked for by pattern is put into a cache."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self.online = True

    @property
    def files(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    @property
    def fetched(self) -> set[str]:
        return {path.relative_to(self.cache).as_posix() for path in self.cache.rglob("*") if path.is_file()}

    def list_repo_files(self, _: Any, name: str) -> list[str]:
        if not self.online:
            raise ConnectionError("no network")
        return self.files

    def snapshot_download(self, name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        if not self.online:
            if self.cache.is_dir():
                return str(self.cache)
            raise LocalEntryNotFoundError("no snapshot\nand more lines")
        if name != NAME:
            raise RepositoryNotFoundError("404 Client Error\nand more lines", response=Response())
        for file in self.files:
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                (self.cache / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.folder / file, self.cache / file)
        return str(self.cache)


@pytest.fixture
def served(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The tiny checkpoint on the hub, among much that nobody needs."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "served"))
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    for name in (
        "v1-5-pruned.ckpt", "README.md", "safety_checker/config.json", "safety_checker/model.safetensors",
        "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.non_ema.safetensors",
        "text_encoder/flax_model.msgpack", "vae/diffusion_pytorch_model.fp16.safetensors",
    ):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"large")
    made = Hub(folder, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda api, name: made.list_repo_files(api, name))
    return made


def test_loads_by_name_what_is_needed(served: Hub, checkpoint: Path) -> None:
    loaded, expected = load(NAME), load(checkpoint)
    for part, network in expected.networks.items():
        found = loaded.networks[part].state_dict()
        assert all(torch.equal(value, found[key]) for key, value in network.state_dict().items())
    assert served.fetched == {
        path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()
    }


def test_shards_and_variants(served: Hub, checkpoint: Path, tmp_path: Path) -> None:
    """Of a variant all its shards, of the other parts the plain files, and none of the plain ones beside it."""
    halves = save_pipeline("sd15", tmp_path / "half", variant="fp16", max_shard_size="20KB")
    shutil.copytree(halves / "unet", served.folder / "unet", dirs_exist_ok=True)
    shutil.copytree(save_pipeline("sd15", tmp_path / "whole") / "vae", served.folder / "vae", dirs_exist_ok=True)
    (served.folder / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    hub.download(NAME, "fp16")
    weights = {path.name for path in halves.glob("unet/*")}
    assert len(weights) > 3
    assert {name for name in served.fetched if "unet/" in name} == {f"unet/{name}" for name in weights}
    assert {name for name in served.fetched if "vae/" in name} == {
        "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    }  # fmt: skip


def test_weights_of_a_part_from_elsewhere_are_not_fetched(served: Hub, checkpoint: Path) -> None:
    """Its config is, which a file of weights lacks; they may be most of the model."""
    vae = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    loaded = load(NAME, parts={"vae": vae})
    assert loaded.vae.state_dict().keys() == load(checkpoint).vae.state_dict().keys()
    assert {name for name in served.fetched if "vae/" in name} == {"vae/config.json"}


@pytest.mark.parametrize("name", ["ldm", "ddpm"])
def test_folders_of_older_pipelines(name: str, served: Hub, tmp_path: Path) -> None:
    """Under other names, or none: the U-Net and the scheduler of a DDPM lie beside model_index.json on the hub."""
    expected = load(save_pipeline(name, tmp_path / name))
    if name == "ddpm":
        for part in ("unet", "scheduler"):
            for file in (tmp_path / name / part).iterdir():
                file.rename(tmp_path / name / file.name)
            (tmp_path / name / part).rmdir()
    shutil.rmtree(served.folder)
    shutil.copytree(tmp_path / name, served.folder)
    kept = set(served.files)
    (served.folder / "samples").mkdir()
    for extra in ("README.md", "samples/1.png", "train.log"):
        (served.folder / extra).write_bytes(b"large")
    for loaded in (load(tmp_path / name), load(NAME)):
        assert loaded.scheduler == expected.scheduler
        for part, network in expected.networks.items():
            found = loaded.networks[part].state_dict()
            assert all(torch.equal(value, found[key]) for key, value in network.state_dict().items())
    assert served.fetched == kept


def test_without_a_network(served: Hub) -> None:
    """What was fetched once is there."""
    expected = load(NAME)
    served.online = False
    assert torch.equal(load(NAME).unet.conv_in.weight, expected.unet.conv_in.weight)


def test_variant_that_is_not_there(served: Hub) -> None:
    with pytest.raises(LdmrtError, match=r"no variant 'bf16' in somebody/a-model.*; found fp16, non_ema, plain"):
        load(NAME, variant="bf16")
    assert served.fetched == {"model_index.json"}


def test_folder_of_that_name_comes_first(served: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(checkpoint, served.folder.parent / NAME)
    monkeypatch.chdir(served.folder.parent)
    load(NAME)
    assert served.fetched == set()


ERRORS = {
    "no network": (
        NAME,
        "no folder somebody/a-model, and the hub could not be reached; found no snapshot and more lines\n  try: ",
    ),
    "no such model": ("somebody/else", "no folder somebody/else, and no such model on the hub"),
    "no pipeline": (NAME, "somebody/a-model on the hub has no model_index.json"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str, served: Hub) -> None:
    if name == "no pipeline":
        (served.folder / "model_index.json").unlink()
        served.cache.mkdir()
    served.online = name != "no network"
    model, message = ERRORS[name]
    with pytest.raises(LdmrtError, match=message) as caught:
        load(model)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize("place", ["", "unet/"])
def test_gguf_in_the_place_of_weights(place: str, served: Hub) -> None:
    """In a model without configs, or of a part in diffusers' layout: nothing large is fetched."""
    for file in served.files:
        if not place or (file.startswith(place) and not file.endswith(".json")):
            (served.folder / file).unlink()
    (served.folder / place / "x-Q4_K_S.gguf").write_bytes(b"GGUF")
    (served.folder / "README.md").write_text("x")
    served.cache.mkdir()
    with pytest.raises(LdmrtError, match=f"{NAME}/{place}x-Q4_K_S.gguf is a GGUF file; expected .*\n  try: ldmrt"):
        load(NAME)
    assert served.fetched <= {"model_index.json"}


@pytest.mark.parametrize("source", ["nowhere", "./a/b", "/a/b", "a/b/c", "../b", "a/", "/b", "a b/c", "a/b.ckpt"])
def test_what_is_no_name(source: str, served: Hub) -> None:
    with pytest.raises(LdmrtError, match=r"no folder|no file"):
        load(source)
    assert served.fetched == set()


def test_from_the_command_line(
    served: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ldmrt.tools.cli import main

    served.online = False
    monkeypatch.setattr("sys.argv", ["ldmrt", "export", NAME, str(served.folder.parent / "bundle")])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"error: checkpoint: no folder {NAME}, and the hub could not be reached")
    assert len(lines) == 2
