"""Seeded damage to files: bytes, JSON values, safetensors headers, and other things under a file's name."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 7, 10**6, 10**30, -(10**30), 0.5, 1e-30, 1e38, 1e308, float("nan"), float("inf"),
    "", "x", "../../x", "/etc/hostname", "\x00", "\x1b[31m", "a" * 100_000, [], {}, [None], [[]], {"": {}}, [1, "x"],
)  # fmt: skip


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """Change a file's content: bits, a cut, a hole, a repeated or a foreign part."""
    data = bytearray(content or b"\0")
    kind, place = rng.randrange(7), rng.randrange(len(data))
    end = min(len(data), place + 1 + rng.randrange(64))
    if kind == 0:
        for _ in range(rng.randrange(1, 9)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[place:]
    elif kind == 2:
        del data[place:end]
    elif kind == 3:
        data[place:place] = data[place:end] * rng.randrange(1, 100)
    elif kind == 4:
        data[place:end] = rng.randbytes(end - place)
    elif kind == 5:
        data[place:end] = bytes(end - place)
    else:
        data = bytearray(rng.choice([b"", b"\0", b"<!doctype html>", rng.randbytes(500), b"\xff\xfe" + content]))
    return bytes(data)


def damaged_value(value: Any, rng: random.Random) -> Any:
    """Replace, remove, add or double one value somewhere in a JSON document."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        kind = rng.randrange(10)
        if kind == 0:
            return {name: item for name, item in value.items() if name != key}
        if kind == 1:
            return {**value, rng.choice(["", "x", "../x", key + "_2", "a\nb"]): value[key]}
        return {**value, key: damaged_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        kind = rng.randrange(10)
        if kind == 0:
            return value[:place] + value[place + 1 :]
        if kind == 1:
            return value[:place] + [value[place]] * 1000 + value[place:]
        return [*value[:place], damaged_value(value[place], rng), *value[place + 1 :]]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and rng.random() < 0.3:
        return rng.choice([value + 1, value - 1, value * 2, value / 2, -value, str(value)])
    return rng.choice(ODD_VALUES)


def damaged_json(content: bytes, rng: random.Random) -> bytes:
    """Damage one value of a JSON file, or nest it beyond what Python recurses."""
    if rng.random() < 0.03:
        return b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    return json.dumps(damaged_value(json.loads(content), rng)).encode()


def damaged_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Damage one value of the header, with its length made right."""
    size = int.from_bytes(content[:8], "little")
    header = damaged_json(content[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def replace_file(path: Path, rng: random.Random) -> None:
    """Put something else under a file's name: nothing, a folder, a link, a FIFO, a device."""
    path.unlink()
    kind = rng.randrange(6)
    if kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to("nowhere")
    elif kind == 3:
        path.symlink_to(path.name)
    elif kind == 4:
        os.mkfifo(path)
    elif kind == 5:
        path.symlink_to("/dev/zero")


def mutate(path: Path, rng: random.Random) -> None:
    """Damage one file in a way that fits its kind."""
    if rng.random() < 0.1:
        replace_file(path, rng)
        return
    ways: list[Callable[[bytes, random.Random], bytes]] = [damaged_bytes]
    if path.suffix == ".json":
        ways += [damaged_json] * 3
    if path.suffix == ".safetensors":
        ways += [damaged_safetensors] * 2
    if path.suffix == ".jsonl":
        ways += [damaged_lines] * 3
    path.write_bytes(rng.choice(ways)(path.read_bytes(), rng))


def damaged_lines(content: bytes, rng: random.Random) -> bytes:
    """Damage one line of a file of JSON lines."""
    lines = content.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = damaged_json(lines[place], rng)
    return b"\n".join(lines)
