"""Find captioned images in tar archives, as WebDataset writes them: members with the same basename are one sample."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path, PurePosixPath

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import decode_json, plain_file

from ..metadata import InvalidRow, Problem, Row, row_of
from .files import Stored
from .tar import Member, compressed, members, read_member

IMAGES = ("jpg", "jpeg", "png", "webp")
TEXT, TABLE = "txt", "json"  # of captions
CAPTION_BYTES = 1 << 20
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
ARCHIVES = (".tar", *COMPRESSED)
MOST = 1 << 20  # shards
SHOWN = 3  # missing shards
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
BASENAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)  # webdataset.tariterators.base_plus_ext


@dataclass(frozen=True)
class Shards:
    """Finds images in archives, by `ARCHIVE/MEMBER`."""

    places: Mapping[str, tuple[Path, Member]] = field(repr=False)

    def __call__(self, name: str) -> Stored:
        """Return an image's file, which is read when it is first needed."""
        path, member = self.places[name]
        return Stored(f"{path}: {member.name}", partial(read_member, path, member), path, member.size)


def shards_in(folder: Path) -> list[Path]:
    """List the archives of a folder in the order of their names."""
    try:
        return sorted(path for path in folder.iterdir() if path.name.lower().endswith(ARCHIVES))
    except OSError:
        return []


def names_shards(data: Path) -> bool:
    """Tell whether a path is of one archive, or a pattern of several such as `shard-{000..127}.tar`."""
    return str(data).lower().endswith(ARCHIVES) and not data.is_dir()


def expanded(pattern: Path) -> list[Path]:
    """Return the archives of a pattern: `{000..127}` stands for numbers, `{a,b}` for a list; or those of a folder.

    Raises:
        LdmrtError: Archives are missing or compressed, or there are too many.
    """
    if pattern.is_dir():
        paths = shards_in(pattern)
    elif pattern.exists():
        paths = [pattern]
    else:
        paths = _paths_of(pattern)
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            found = f"no {', '.join(missing[:SHOWN])}" + f" and {len(missing) - SHOWN} more" * (len(missing) > SHOWN)
            expected = f"{len(paths)} archives" if len(paths) > 1 else None
            raise LdmrtError("data", f"archives of {pattern} are missing", expected=expected, found=found)
    for path in paths:
        if path.name.lower().endswith(COMPRESSED):
            raise compressed(path)
        plain_file("data", path)
    return paths


def _paths_of(pattern: Path) -> list[Path]:
    """Write out the braces of a pattern."""
    parts, place, count = list[list[str]](), 0, 1
    for found in BRACES.finditer(str(pattern)):
        first, last, words = found.groups()
        count *= len(words.split(",")) if words else max(0, int(last) - int(first) + 1)
        if not 0 < count <= MOST:
            raise LdmrtError("data", f"invalid pattern {pattern}", expected=f"1 to {MOST} archives", found=count)
        numbers = range(int(first), int(last) + 1) if first else ()
        choices = words.split(",") if words else [f"{number:0{len(first)}}" for number in numbers]
        parts += [[str(pattern)[place : found.start()]], choices]
        place = found.end()
    return [Path("".join(words)) for words in product(*parts, [str(pattern)[place:]])]


def read_shards(
    pattern: Path, prompt: str | None, column: str, *, empty: bool = False
) -> tuple[list[Row], list[Problem], Shards]:
    """Read the captions of archives and where their images are; no image is read.

    The caption of `cat.jpg` is `cat.txt`, or else the column of `cat.json`, or else `prompt`.

    Args:
        pattern: One archive, a pattern of several, or a folder of them.
        prompt: The caption of images without one.
        column: The key of the captions in JSON; a caption may be a list of several.
        empty: Whether a caption may be empty, or missing.

    Returns:
        The rows, what is wrong with samples, and where the images are.

    Raises:
        LdmrtError: An archive is missing, compressed, damaged or truncated.
    """
    paths = expanded(pattern)
    root = os.path.commonpath([path.parent for path in paths])
    rows, problems, places = list[Row](), list[Problem](), dict[str, tuple[Path, Member]]()
    for path in paths:
        shard = Path(os.path.relpath(path, root)).as_posix()
        for key, sample in _samples(path, shard, problems).items():
            images = [member for ending, member in sample.items() if ending in IMAGES]
            if len(images) != 1:
                found = " and ".join(member.name for member in images) or f"{', '.join(sample)} without an image"
                problems.append(Problem(0, f"{shard}: {key} has {found}"))
                continue
            name = f"{shard}/{images[0].name}"
            try:
                captions = _captions(path, sample, prompt, column, empty=empty)
                rows.append(row_of(0, {"file_name": name, column: captions}, column, empty=empty))
                places[name] = (path, images[0])
            except InvalidRow as invalid:
                problems.append(Problem(0, f"{shard}: {images[0].name}: {invalid}"))
    return rows, problems, Shards(places)


def _samples(path: Path, shard: str, problems: list[Problem]) -> dict[str, dict[str, Member]]:
    """Group the images and captions of an archive by their basenames, by their endings; note those that are invalid."""
    samples = dict[str, dict[str, Member]]()
    for member in members(path):
        if (parts := BASENAME.fullmatch(member.name)) is None:
            continue
        key, ending = parts[1], parts[2].lower()
        if ending not in (*IMAGES, TEXT, TABLE):
            continue
        if invalid := _invalid(member, samples.get(key, {}), ending):
            problems.append(Problem(0, f"{shard}: {member.name!r} {invalid}"))
            continue
        samples.setdefault(key, {})[ending] = member
    return samples


def _invalid(member: Member, sample: Mapping[str, Member], ending: str) -> str | None:
    """Say what is wrong with a member, if anything."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or not member.name.isprintable():
        return "is not a valid member name"
    if member.kind:
        return f"is {member.kind}"
    return "is there twice" if ending in sample else None


def _captions(path: Path, sample: Mapping[str, Member], prompt: str | None, column: str, *, empty: bool) -> object:
    """Return the caption of a sample, or a list of captions; raise an `InvalidRow` where it has none."""
    for ending in (TEXT, TABLE):
        if ending not in sample:
            continue
        member = sample[ending]
        if member.size > CAPTION_BYTES:
            raise InvalidRow(f"{member.name} has {member.size} bytes")
        try:
            text = read_member(path, member).decode("utf-8-sig")
            if ending == TEXT:
                return text.strip()
            value = decode_json(text)
        except UnicodeDecodeError:
            raise InvalidRow(f"{member.name} is not UTF-8") from None
        except (json.JSONDecodeError, ValueError) as error:
            raise InvalidRow(f"{member.name} is not JSON ({str(error)[:80]})") from None
        if isinstance(value, dict) and column in value:
            return value[column]
        if prompt is None and not empty:
            raise InvalidRow(f"no {column} in {member.name}")
    if prompt is None and not empty:
        raise InvalidRow("no caption, and there is no --prompt")
    return prompt or ""
