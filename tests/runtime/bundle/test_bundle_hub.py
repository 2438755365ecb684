"""Bundles by their name on the hub: a hub's cache built by hand, and a stand-in for the hub."""

import fnmatch
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from requests import Response

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.hub import local_bundle
from ldmrt.runtime.bundle.manifest import MANIFEST
from ldmrt.runtime.errors import BundleError
from ldmrt.runtime.files.hub import is_hub_name

NAME, COMMIT = "owner/a-bundle", "0123456789abcdef0123456789abcdef01234567"
STRAY = ("README.md", "unet/diffusion_pytorch_model.safetensors", "engines/0123/engine.plan", "optimized/unet.onnx")


class Hub:
    """A folder that is served as the hub serves one: files of the patterns asked for come into a snapshot."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.snapshot = folder, cache / "snapshots" / COMMIT
        self.revisions: list[str | None] = []
        self.failure: Exception | None = None

    @property
    def fetched(self) -> set[str]:
        return files_of(self.snapshot)

    def snapshot_download(self, name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.revisions.append(revision)
        if self.failure is not None:
            raise self.failure
        assert name == NAME
        self.snapshot.mkdir(parents=True, exist_ok=True)
        for file in files_of(self.folder):
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                (self.snapshot / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.folder / file, self.snapshot / file)
        return str(self.snapshot)


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def served(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The tiny bundle on the hub, among much that is not of it; nothing is in the working directory."""
    folder = Path(shutil.copytree(bundle, tmp_path / "served"))
    for file in STRAY:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"large")
    hub = Hub(folder, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return hub


def test_files_of_the_manifest_are_fetched_and_no_others(served: Hub, bundle: Path) -> None:
    folder = local_bundle(NAME)
    assert folder == served.snapshot
    assert served.fetched == {MANIFEST, *json.loads((bundle / MANIFEST).read_text())["files"]}
    assert Bundle.open(folder).manifest == Bundle.open(bundle).manifest
    assert served.revisions == [None, COMMIT]  # all files are of the manifest's commit


def test_later_stages_are_fetched_too(served: Hub, bundle: Path) -> None:
    shutil.copytree(bundle, served.folder / "upscale")
    (served.folder / "upscale" / "notes.txt").write_bytes(b"large")
    manifest = json.loads((bundle / MANIFEST).read_text())
    (served.folder / MANIFEST).write_text(json.dumps({**manifest, "schema": 3, "then": ["upscale"]}))
    folder = local_bundle(NAME)
    assert served.fetched == files_of(bundle) | {f"upscale/{file}" for file in files_of(bundle)}
    assert Bundle.open(folder).then == ("upscale",)
    assert Bundle.open(folder / "upscale").components == Bundle.open(bundle).components
    shutil.rmtree(served.snapshot)
    shutil.rmtree(served.folder / "upscale")
    assert "upscale/ldmrt.json" in refused()


def test_a_bundle_without_a_manifest(served: Hub, bundle: Path) -> None:
    """One that optimum exported: its networks, tokenizers and configs."""
    (served.folder / MANIFEST).unlink()
    opened = Bundle.open(local_bundle(NAME))
    assert opened.components == Bundle.open(bundle).components
    assert not {*STRAY, "unet/step.onnx"} & served.fetched
    assert served.fetched < files_of(bundle)


@pytest.mark.parametrize(
    ("name", "revision"), [(f"{NAME}@v1.0", None), (NAME, "v1.0"), (Path(NAME), "v1.0"), (NAME, "refs/pr/1")]
)
def test_revisions(served: Hub, name: str | Path, revision: str | None) -> None:
    local_bundle(name, revision)
    assert served.revisions == [revision or "v1.0", COMMIT]


def test_a_file_name_is_no_pattern(served: Hub) -> None:
    """A manifest may name a file with brackets."""
    manifest = json.loads((served.folder / MANIFEST).read_text())
    manifest["files"]["notes/[a].txt"] = {"size": 1, "sha256": ""}
    (served.folder / MANIFEST).write_text(json.dumps(manifest))
    (served.folder / "notes").mkdir()
    (served.folder / "notes" / "[a].txt").write_text("x")
    (served.folder / "notes" / "a.txt").write_text("x")
    local_bundle(NAME)
    assert {file for file in served.fetched if file.startswith("notes/")} == {"notes/[a].txt"}


@pytest.mark.parametrize("name", ["there", "owner/there", "there@v1", "./owner/there", "../here/owner/there"])
def test_a_path_that_exists_is_returned_as_it_is(served: Hub, name: str) -> None:
    Path(name).mkdir(parents=True)
    assert local_bundle(name) == local_bundle(Path(name)) == Path(name)
    assert local_bundle(Path(name).absolute()) == Path(name).absolute()
    assert served.revisions == []


PATHS = (
    *("nowhere", "./a/b", "../b", "/a/b", "~/b", "~a/b", ".a/b", "a/b/c", "a/b/", "a//b", "a/", "a b/c", "a/b c"),
    *("a/..", "a/b--c", "a/b.git", "caf\xe9/b", r"C:\a/b", "a/b@", "a/b@c/d", "a/b\0", "a/" + 300 * "b" + "/c"),
)


@pytest.mark.parametrize("name", PATHS)
def test_what_cannot_be_a_name_on_the_hub_is_a_path(served: Hub, name: str) -> None:
    assert local_bundle(name) == Path(name)
    assert served.revisions == []


def test_names() -> None:
    assert all(map(is_hub_name, ("a/b", "stabilityai/sd-turbo", "owner/model_1.5", "0/1")))
    assert not any(map(is_hub_name, ("", "a", "/", "a/", "/b", "-a/b", "a/.b", "a\n/b", "a/b\n")))


def test_a_bundle_moved_aside_by_a_killed_command_is_put_back(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldmrt.runtime.bundle.hub.recover", lambda path: path.mkdir(parents=True))
    assert local_bundle(NAME) == Path(NAME)
    assert served.revisions == []


def refused(name: str = NAME, revision: str | None = None) -> str:
    with pytest.raises(BundleError) as caught:
        local_bundle(name, revision)
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


FAILURES = {
    "no model": (
        RepositoryNotFoundError("404 Client Error\nmore", response=Response()),
        f"bundle: no folder {NAME}, and no such model on the hub\n  try: hf auth login, where the model is private",
    ),
    "restricted": (
        GatedRepoError("403 Client Error\nmore", response=Response()),
        f"bundle: no folder {NAME}, and access to the model on the hub is restricted\n"
        f"  try: accept its terms on https://huggingface.co/{NAME}, then hf auth login",
    ),
    "no network": (
        LocalEntryNotFoundError("no snapshot\nmore"),
        f"bundle: no folder {NAME}, and the hub could not be reached; found no snapshot more\n"
        "  try: run again with a network, or name a folder that exists",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_failures_of_the_hub(served: Hub, failure: str) -> None:
    served.failure, message = FAILURES[failure]
    assert refused() == f"{message}; for a bundle of your own: ldmrt export CHECKPOINT {NAME}"


def test_no_such_revision(served: Hub) -> None:
    served.failure = RevisionNotFoundError("404", response=Response())
    assert refused(f"{NAME}@v9").startswith(
        f"bundle: {NAME} on the hub has no revision v9; expected a branch, a tag or a"
    )


def test_huggingface_hub_is_not_installed(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr("ldmrt.runtime.optional.is_installed", lambda name: False)
    message = refused()
    assert message.startswith(f"bundle: no folder {NAME}: huggingface_hub is not installed\n  try: pip install ")


def make_checkpoint(folder: Path) -> None:
    for path in (folder / MANIFEST, *folder.rglob("*.onnx*")):
        path.unlink()


def make_stranger(folder: Path) -> None:
    make_checkpoint(folder)
    (folder / "model_index.json").unlink()


def make_dangerous(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["../../escaped"] = {"size": 1, "sha256": ""}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def make_incomplete(folder: Path) -> None:
    (folder / "unet" / "model.onnx_data").unlink()


NOT_BUNDLES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "checkpoint": (
        make_checkpoint,
        f"{NAME} on the hub is not a bundle; expected ldmrt.json, or ONNX files as optimum ",
        f"try: ldmrt export {NAME} out/a-bundle",
    ),
    "stranger": (
        make_stranger,
        f"{NAME} on the hub is not a bundle; expected ldmrt.json, or ",
        "try: ldmrt export CHECKPOINT out/a-bundle",
    ),
    "dangerous": (
        make_dangerous,
        "ldmrt.json names '../../escaped'; expected a path inside the bundle",
        "",
    ),
    "incomplete": (
        make_incomplete,
        f"{NAME} from the hub is incomplete; expected unet/model.onnx_data",
        "try: run again with a network, or upload the bundle again",
    ),
}


@pytest.mark.parametrize("kind", NOT_BUNDLES)
def test_what_is_no_bundle(served: Hub, kind: str) -> None:
    make, problem, hint = NOT_BUNDLES[kind]
    make(served.folder)
    message = refused()
    assert message.startswith(f"bundle: {problem}")
    assert hint in message
    assert kind == "incomplete" or not any(file.endswith((".onnx", "_data", ".plan")) for file in served.fetched)


def test_two_revisions_or_one_of_a_folder(served: Hub) -> None:
    assert "expected only one revision" in refused(f"{NAME}@a", "b")
    Path(NAME).mkdir(parents=True)
    with pytest.raises(BundleError, match=f"{NAME} has no revisions"):
        local_bundle(NAME, "a")
    assert served.revisions == []


PROGRAM = "import sys; from ldmrt.runtime.bundle.hub import local_bundle; print(local_bundle(sys.argv[1]))"


def test_a_real_cache_without_a_network(bundle: Path, tmp_path: Path) -> None:
    """The layout of the hub's cache, read by huggingface_hub itself: links to blobs, and a file for each branch."""
    repository = tmp_path / "home" / "hub" / f"models--{NAME.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "blobs").mkdir()
    snapshot = repository / "snapshots" / COMMIT
    for number, file in enumerate(sorted(files_of(bundle))):
        blob, link = repository / "blobs" / f"{number:040x}", snapshot / file
        shutil.copyfile(bundle / file, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)

    def run(name: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", PROGRAM, name]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)

    found = run(NAME)
    assert found.returncode == 0, found.stderr
    assert Path(found.stdout.strip()) == snapshot
    assert Bundle.open(snapshot).manifest == Bundle.open(bundle).manifest
    assert run(f"{NAME}@{COMMIT}").stdout == found.stdout
    assert "no folder owner/another, and the hub could not be reached" in run("owner/another").stderr
    (snapshot / "unet" / "model.onnx").unlink()
    assert f"{NAME} from the hub is incomplete; expected unet/model.onnx" in run(NAME).stderr
