"""Bundles with one or a few things changed at random: bytes, JSON values, sizes, links, files of other kinds."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

MANIFEST = "ldmrt.json"
VALUES = (None, True, False, 0, -1, 1, 2**31, 10**40, 1e308, float("nan"), float("inf"), "", "x", "../x", "/etc", "\0")
VALUES += ("\x1b[31m", "a\nb", [], {}, [[]], [None], {"": None}, "unet", "fp16", [1] * 5000, "x" * 100000)


def mutate(bundle: Path, seed: int) -> str:
    """Change a bundle in place, the same way for the same seed; say what was done. Half of the time its manifest is
    written anew, so that what is behind the hashes is reached.
    """
    rng, done = random.Random(seed), list[str]()
    for _ in range(rng.choice((1, 1, 2, 4))):
        kind = rng.choice((change_json, change_json, change_json, change_manifest, change_bytes, cut, replace, link))
        files = sorted(one for one in bundle.rglob("*") if one.is_file() and not one.is_symlink())
        done.append(kind(bundle, files, rng))
    if rng.random() < 0.5:
        list_anew(bundle)
        done.append("listed anew")
    return f"seed {seed}: {'; '.join(done)}"


def list_anew(bundle: Path) -> None:
    """Write sizes and hashes anew, where there is a manifest that can be read."""
    if not (bundle / MANIFEST).is_file():
        return
    try:
        manifest = json.loads((bundle / MANIFEST).read_text())
        files = {one.relative_to(bundle).as_posix(): one.read_bytes() for one in bundle.rglob("*") if one.is_file()}
        del files[MANIFEST]
        manifest["files"] = {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
        }
        (bundle / MANIFEST).write_text(json.dumps(manifest))
    except (ValueError, TypeError, OSError, KeyError, RecursionError):
        return


def change_json(bundle: Path, files: list[Path], rng: random.Random) -> str:
    """Another value somewhere in a JSON file."""
    path = rng.choice([one for one in files if one.suffix == ".json"] or files)
    return _change_value(bundle, path, rng)


def change_manifest(bundle: Path, files: list[Path], rng: random.Random) -> str:
    """Another value somewhere in the manifest."""
    return _change_value(bundle, bundle / MANIFEST, rng)


def _change_value(bundle: Path, path: Path, rng: random.Random) -> str:
    if not path.is_file():
        return "nothing"
    try:
        root = node = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError):
        return "nothing"
    where: list[Any] = []
    while isinstance(node, (dict, list)) and node:
        key = rng.choice(sorted(node) if isinstance(node, dict) else range(len(node)))
        where.append(key)
        if rng.random() < 0.25 or not isinstance(node[key], (dict, list)) or not node[key]:
            break
        node = node[key]
    if not where:
        return "nothing"
    value, how = rng.choice(VALUES), rng.randrange(5)
    if how == 0:
        del node[where[-1]]
    elif how == 1 and isinstance(node, dict):
        node[str(value)] = node.pop(where[-1])
    else:
        node[where[-1]] = value
    text = json.dumps(root)
    path.write_text(text if rng.random() < 0.95 else "[" * 50000 + text)
    return f"{path.relative_to(bundle)} {where} {how} {value!r:.30}"


def change_bytes(bundle: Path, files: list[Path], rng: random.Random) -> str:
    """A few bytes of a file."""
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 8, 64)) if content else 0):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content)
    return f"bytes of {path.relative_to(bundle)}"


def cut(bundle: Path, files: list[Path], rng: random.Random) -> str:
    """A file that ends early, or late."""
    path = rng.choice(files)
    content = path.read_bytes()
    size = rng.choice((0, 1, len(content) // 2, len(content) - 1, len(content) + 100))
    path.write_bytes(content[:size].ljust(size, b"\0") if size > 0 else b"")
    return f"{path.relative_to(bundle)} of {size} bytes"


def replace(bundle: Path, files: list[Path], rng: random.Random) -> str:
    """A file that is gone, a folder, a FIFO, or another file of the bundle."""
    path, other = rng.choice(files), rng.choice(files)
    kinds: dict[str, Callable[[], Any]] = {
        "gone": lambda: None,
        "a folder": path.mkdir,
        "a FIFO": lambda: os.mkfifo(path),
        "another": lambda: shutil.copy(other, path),
    }
    kind = rng.choice(sorted(kinds))
    if path == other:
        return "nothing"
    path.unlink()
    kinds[kind]()
    return f"{path.relative_to(bundle)} is {kind}"


def link(bundle: Path, files: list[Path], rng: random.Random) -> str:
    """A file or its folder that is a link to somewhere else."""
    path = rng.choice(files)
    path = path.parent if path.parent != bundle and rng.random() < 0.3 else path
    target = rng.choice(("/etc/passwd", "/dev/zero", "/", str(path), "nowhere", str(rng.choice(files)), "moved"))
    outside = bundle.with_name(f"{bundle.name}-{path.name}")
    if outside.exists():
        return "nothing"
    path.rename(outside)
    path.symlink_to(outside if target == "moved" else target)
    return f"{path.relative_to(bundle)} is a link to {target}"
