"""What ONNX Runtime made of the networks is kept beside the bundle, and used while it is whole and of this content."""

import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ldmrt.runtime
from ldmrt.runtime import LdmrtError, LdmrtWarning
from ldmrt.runtime.backends.kept_networks import FOLDER, LIST, keeping, kept
from ldmrt.runtime.backends.ort.engine import DATA, MODEL
from ldmrt.runtime.files.owners import Owner

DEAD = Owner(Owner.current().host, 2**22 + 1, 1)  # above what Linux gives
ASKED: dict[str, Any] = {"prompt": "a red apple", "num_inference_steps": 2, "seed": 3}
NETWORKS = ["text_encoder", "unet", "vae_decoder"]  # of a picture made of words


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def draw(path: Path, **options: Any) -> Any:
    pipeline = ldmrt.runtime.open(path, "onnxruntime", **options)
    latents = pipeline(**ASKED)
    pipeline.close()
    return latents.latents, latents.pixels


def folders(path: Path) -> list[Path]:
    return sorted((path / FOLDER).iterdir())


def test_the_same_numbers_of_what_was_kept(copy: Path, bundle: Path) -> None:
    expected = draw(bundle)
    for found, one in zip(draw(copy, keep_optimized=True), expected, strict=True):
        np.testing.assert_array_equal(found, one)
    assert [folder.name.split("-")[0] for folder in folders(copy)] == NETWORKS
    assert all({file.name for file in folder.iterdir()} == {MODEL, DATA, LIST} for folder in folders(copy))
    for name in NETWORKS:  # from here on there is nothing else to open
        (copy / name / "model.onnx").write_bytes(b"")
    with pytest.raises(LdmrtError, match="cannot load"):
        draw(copy, check=False)
    for found, one in zip(draw(copy, keep_optimized=True, check=False), expected, strict=True):
        np.testing.assert_array_equal(found, one)


@pytest.mark.parametrize("harm", [lambda file: file.write_bytes(file.read_bytes()[:-1] + b"x"), Path.unlink])
@pytest.mark.parametrize("name", [MODEL, DATA, LIST])
def test_what_was_damaged_is_made_anew(copy: Path, harm: Any, name: str) -> None:
    first = draw(copy, keep_optimized=True)
    unet = next(folder for folder in folders(copy) if folder.name.startswith("unet"))
    harm(unet / name)
    assert kept(unet, MODEL, DATA) is None
    for found, one in zip(draw(copy, keep_optimized=True), first, strict=True):
        np.testing.assert_array_equal(found, one)
    assert kept(unet, MODEL, DATA) == unet / MODEL


def test_another_content_takes_the_place_of_the_old_and_another_cpu_does_not(tmp_path: Path) -> None:
    for name in ("unet-old-a", "unet-old-b", "unet_deep-old-a", "unet-new-a"):
        with keeping(tmp_path / FOLDER / name) as work:
            assert work is not None
            (work / MODEL).write_bytes(b"a graph")
    assert [folder.name for folder in folders(tmp_path)] == ["unet-new-a", "unet_deep-old-a"]
    with keeping(tmp_path / FOLDER / "unet-new-b") as work:
        assert work is not None
    assert [folder.name for folder in folders(tmp_path)] == ["unet-new-a", "unet-new-b", "unet_deep-old-a"]


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER / "unet-a-b"

    def fail() -> None:
        with keeping(folder) as work:
            assert work is not None
            (work / MODEL).write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert folders(tmp_path) == []
    for owner, stays in ((Owner.current(), True), (DEAD, False)):
        left = tmp_path / FOLDER / f".unet-a-b.ldmrt-{owner}-01234567.tmp"
        left.mkdir()
        with keeping(folder):
            assert left.exists() == stays


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"kept.json": ""}', "[" * 100000, '{"model.onnx": 1}'])
def test_a_list_of_nothing_is_not_a_whole_cache(copy: Path, content: str) -> None:
    expected = draw(copy, keep_optimized=True)
    for folder in folders(copy):
        (folder / LIST).write_text(content)
        assert kept(folder, MODEL, DATA) is None
    for found, one in zip(draw(copy, keep_optimized=True), expected, strict=True):
        np.testing.assert_array_equal(found, one)


def test_where_nothing_can_be_written(copy: Path) -> None:
    (copy / FOLDER).write_bytes(b"in the way")
    with pytest.warns(LdmrtWarning, match="nothing can be kept there"):
        draw(copy, keep_optimized=True)


def test_a_full_disk_is_a_warning_and_the_image(copy: Path, bundle: Path) -> None:
    """Files that may not grow fail as those on a full disk do, in ONNX Runtime too."""
    expected, before = draw(bundle), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.warns(LdmrtWarning, match="nothing can be kept there"):
            found = draw(copy, keep_optimized=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert folders(copy) == []


def test_refused(copy: Path) -> None:
    with pytest.raises(LdmrtError, match="keep_optimized and low_memory exclude each other"):
        ldmrt.runtime.open(copy, keep_optimized=True, low_memory=True)
    (copy / "ldmrt.json").unlink()
    with pytest.raises(LdmrtError, match="has no manifest"):
        draw(copy, keep_optimized=True)
