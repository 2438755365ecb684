"""A run goes on in its own folder alone, no folder has many entries, and images lie where their lines say."""

import json
import os
from pathlib import Path

import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.serve.batch.folder import Stated, image_path, locked, make_folder, remove_after

STATED = Stated("tiny", "aa", {"--steps": 20, "--guidance-interval": (0.3, 5.0), "--negative": None})


@pytest.mark.parametrize("images", [1, 2, 500, 501, 1200])
def test_no_folder_has_more_than_a_thousand_entries(images: int) -> None:
    """Of images and their depths, and no two images share a file."""
    lines = [*range(1, 1502), 499_999, 500_000, 500_001] if images < 3 else [1, 500, 501]
    entries: dict[Path, set[str]] = {}
    for line in lines:
        for image in range(images):
            path = image_path(line, image, images)
            for name in (path, path.with_name(f"{path.stem}-depth.png")):
                for parent in name.parents:
                    below = entries.setdefault(parent, set())
                    below.add(name.relative_to(parent).parts[0])
    assert max(map(len, entries.values())) <= 1000
    files = {image_path(line, image, images) for line in lines for image in range(images)}
    assert len(files) == len(lines) * images


def test_names() -> None:
    assert image_path(1, 0, 1) == Path("000/000/000001-0.png")
    assert image_path(501, 2, 3) == Path("000/001/000501/000501-2.png")
    assert image_path(12_345_678, 0, 1) == Path("024/691/12345678-0.png")


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    assert not STATED.check(tmp_path / "new")
    (tmp_path / ".hidden").touch()  # as a process leaves it that is killed at its begin
    assert not STATED.check(tmp_path)
    STATED.write(tmp_path)
    assert STATED.check(tmp_path)
    assert Stated("elsewhere/renamed", "aa", STATED.options).check(tmp_path)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (Stated("other", "bb", STATED.options), "are of another bundle; expected tiny; found other"),
        (Stated("tiny", "aa", {**STATED.options, "--steps": 30}), "with another --steps; expected 20; found 30"),
        (Stated("tiny", "aa", {**STATED.options, "--negative": "ü"}), 'another --negative; expected null; found "ü"'),
        (Stated("tiny", "aa", {**STATED.options, "--eta": 1.0}), "another --eta; expected null; found 1.0"),
    ],
)
def test_a_run_of_another_kind(tmp_path: Path, stated: Stated, message: str) -> None:
    STATED.write(tmp_path)
    with pytest.raises(LdmrtError, match=message):
        stated.check(tmp_path)


def test_a_folder_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").touch()
    with pytest.raises(LdmrtError, match="is there and holds no run of ldmrt batch"):
        STATED.check(tmp_path)
    (tmp_path / "diary.txt").rename(tmp_path / "batch.json")
    with pytest.raises(LdmrtError, match="cannot read"):
        STATED.check(tmp_path)


def test_what_was_drawn_too_far_is_removed(tmp_path: Path) -> None:
    """Images of later lines, also in the next folder, and the files of a process that was killed; nothing else."""
    stays = [image_path(line, image, images) for line, images in ((1, 1), (499, 3)) for image in range(images)]
    goes = [
        image_path(line, image, images) for line, images in ((500, 1), (501, 3), (999, 1)) for image in range(images)
    ]
    goes += [Path("000/001/000503-0-depth.png")]
    mine = [Path("000/001/notes.txt"), Path("000/000/500.png")]
    for path in (*stays, *goes, *mine):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    remove_after(tmp_path, 499)
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()} == {*stays, *mine}
    remove_after(tmp_path / "new", 0)


def test_the_names_of_new_folders_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each folder is synced whose entries have changed: that of the run, and those between it and the images."""
    synced = list[Path]()
    monkeypatch.setattr("ldmrt.serve.batch.folder.sync_folder", synced.append)
    for _ in range(2):
        make_folder(tmp_path, image_path(3, 1, 2))
    assert synced == [tmp_path / "000/000", tmp_path / "000", tmp_path]
    assert (tmp_path / "000/000/000003").is_dir()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with locked(out), pytest.raises(LdmrtError, match=f"is in use by process {os.getpid()}"), locked(out):
        pass
    assert list(tmp_path.iterdir()) == []
    with locked(out):
        (out / "x").touch()
    assert [path.name for path in out.iterdir()] == ["x"]


def test_it_is_written_as_json(tmp_path: Path) -> None:
    STATED.write(tmp_path)
    read = json.loads((tmp_path / "batch.json").read_text())
    assert read["options"] == {"--steps": 20, "--guidance-interval": [0.3, 5.0], "--negative": None}
