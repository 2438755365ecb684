"""`--data` of tar archives: checked, skipped, divided, resumed and sorted into shapes as a folder's images are."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ldmrt.model.training.data import image_check
from ldmrt.model.training.tasks import presets
from ldmrt.runtime.files import file_cache
from ldmrt.tools.console.training import checks

from ....support.image_files import archive, encoded

WEIGHTS = Path("vae") / "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = replace(presets.AUTOENCODER, block_out_channels=(4,) * 4, layers_per_block=1, norm_num_groups=2)
    monkeypatch.setattr(presets, "AUTOENCODER", config)
    monkeypatch.setattr(checks, "SHOWN", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def contents() -> dict[str, bytes | str]:
    sizes = [(70, 40), (40, 70), (48, 48), (80, 45), (64, 64), (40, 72)]
    found = dict[str, bytes | str]()
    for i, size in enumerate(sizes):
        found |= {f"{i}.png": encoded(i, size), f"{i}.txt": f"image {i}"}
    return found


def in_shards(folder: Path, contents: dict[str, bytes | str]) -> Path:
    folder.mkdir()
    for i in range(2):
        part = {name: content for name, content in contents.items() if int(name[0]) // 3 == i}
        archive(folder / f"s-{i}.tar", part)
    return folder


@pytest.fixture
def words() -> Callable[..., list[object]]:
    def of(data: Path | str, out: Path, *more: object) -> list[object]:
        return ["train", "autoencoder", "--data", data, "--out", out, "--batch", 2, "--size", 64, "--warmup", 1, *more]

    return of


def test_check_reads_archives(ldmrt: Any, contents: dict, tmp_path: Path) -> None:
    folder = in_shards(tmp_path / "shards", contents)
    for data in (folder, folder / "s-{0..1}.tar"):
        ran = ldmrt("data", "check", data)
        assert (ran.code, ran.out) == (0, f"{data}: 6 captioned images can be used\n")
    archive(folder / "s-2.tar", {"a.png": b"", "a.txt": "a", "b.png": encoded(3, (9, 9)), "b.txt": "b", "c.png": b"c"})
    ran = ldmrt("data", "check", folder)
    assert f"3 images of {folder} cannot be used" in ran.error
    for found in (
        "s-2.tar/a.png is empty",
        "s-2.tar/b.png is 9 pixels",
        "s-2.tar: c.png: no caption, and there is no --prompt",
    ):
        assert f"\n  {found}" in ran.err
    assert "missing; expected 4 archives" in ldmrt("data", "check", folder / "s-{0..3}.tar").error.replace("are ", "")


@pytest.mark.slow(minutes=0.06)
def test_the_bytes_of_archives_train_the_same_weights_as_a_folder(
    ldmrt: Any, contents: dict, words: Callable[..., list[object]], tmp_path: Path
) -> None:
    """With shapes and a validation split; a run that was stopped and resumed included."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    data = in_shards(tmp_path / "shards", contents) / "s-{0..1}.tar"
    more = ("--buckets", "--validation", 0.3, "--schedule", "constant")
    for out, source, steps in (("a", folder, (4,)), ("b", data, (4,)), ("c", data, (2, 4))):
        for part, count in enumerate(steps):
            ran = ldmrt(*words(source, tmp_path / out, *more, "--steps", count, *["--resume"] * part))
            assert ran.code == 0, ran.err
    found = [(tmp_path / out / WEIGHTS).read_bytes() for out in "abc"]
    assert found[0] == found[1] == found[2]
    logs = [json.loads((tmp_path / out / "log.jsonl").read_text().splitlines()[-1]) for out in "ab"]
    assert logs[0]["validation"] == logs[1]["validation"]
    assert str(data) in (tmp_path / "b" / "recipe.toml").read_text()


def test_bad_and_small_images_are_skipped(
    ldmrt: Any, contents: dict, words: Callable[..., list[object]], tmp_path: Path
) -> None:
    contents |= {"1.png": contents["1.png"][:-200], "2.png": encoded(2, (9, 9))}
    data = in_shards(tmp_path / "shards", contents)
    assert "s-0.tar/1.png cannot be read" in ldmrt(*words(data, tmp_path / "out", "--steps", 1)).err
    ran = ldmrt(*words(data, tmp_path / "out", "--steps", 2, "--on-bad", "skip", "--on-small", "skip"))
    assert ran.code == 0, ran.err
    assert f"skipped 2 images of {data}" in ran.err


def test_images_of_archives_that_have_not_changed_are_not_decoded_again(
    ldmrt: Any, contents: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_cache, "SETTLED", -1e18)
    names, read_image = list[str](), image_check.read_image
    monkeypatch.setattr(
        image_check, "read_image", lambda file, least: names.append(file.name) or read_image(file, least)
    )
    data = in_shards(tmp_path / "shards", contents)
    for expected in (6, 6):
        assert ldmrt("data", "check", data).code == 0
        assert len(names) == expected
    (data / "s-1.tar").touch()
    assert ldmrt("data", "check", data).code == 0
    assert len(names) == 9


def test_a_data_set_of_the_hub_is_trained_on_and_resumed(
    ldmrt: Any, contents: dict, words: Callable[..., list[object]], tmp_path: Path
) -> None:
    datasets: Any = pytest.importorskip("datasets")
    names = [name for name in contents if name.endswith(".png")]
    columns = {"image": [{"bytes": contents[name]} for name in names], "alt": [f"image {name}" for name in names]}
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    data, more = f"hf:{tmp_path / 'saved'}", ("--caption-column", "alt", "--schedule", "constant", "--buckets")
    ran = ldmrt("data", "check", data, "--caption-column", "alt")
    assert (ran.code, ran.out) == (0, f"{data}: 6 captioned images can be used\n")
    assert "has no column text" in ldmrt("data", "check", data).error
    for out, steps in (("whole", (4,)), ("halves", (2, 4))):
        for part, count in enumerate(steps):
            ran = ldmrt(*words(data, tmp_path / out, *more, "--steps", count, *["--resume"] * part))
            assert ran.code == 0, ran.err
    assert (tmp_path / "whole" / WEIGHTS).read_bytes() == (tmp_path / "halves" / WEIGHTS).read_bytes()
