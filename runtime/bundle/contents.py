"""Which files a bundle may hold and where they may be: plain files inside its folder, by plain names.

A bundle from a stranger may name any path, or hold a link to one. The one exception is a snapshot in the Hugging Face
cache, whose files are links into the cache's own store of the same repository.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import plain_file, read_json

from .external_data import locations

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(?:[.-][A-Za-z0-9_]+)*")  # of components, graphs and tokenizers
LONGEST = 100  # characters of such a name
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f\\:*?"<>|]')  # control characters, and what Windows keeps for itself
AGAIN = "export again, or copy the bundle again"


def is_name(text: object) -> bool:
    """Whether a text can be the name of a component, of a graph or of a tokenizer."""
    return isinstance(text, str) and len(text) <= LONGEST and NAME.fullmatch(text) is not None


def is_inside(name: object) -> bool:
    """Whether a text is a path relative to the bundle that stays inside it, in its one plain form."""
    if not isinstance(name, str) or not name or FORBIDDEN.search(name) or len(name) > 1000:
        return False
    pure = PurePosixPath(name)
    return not pure.is_absolute() and ".." not in pure.parts and pure.as_posix() == name and name != "."


@dataclass(frozen=True)
class Contents:
    """The files of one bundle. Where it has a manifest, those are the files that the manifest `lists`."""

    bundle: Path
    lists: Mapping[str, Any] | None = field(repr=False)

    def has(self, name: str) -> bool:
        """Whether a file is there, and listed."""
        return (self.lists is None or name in self.lists) and (self.bundle / name).is_file()

    def file(self, name: str, where: str = "bundle") -> Path:
        """Return the path of a file that may be read; an `LdmrtError` where it is not of the bundle."""
        path = self.bundle / name
        if not is_inside(name):
            raise LdmrtError(where, f"unsupported file name {name!r:.200}", expected="a path inside the bundle")
        if self.lists is not None and name not in self.lists:
            raise LdmrtError(where, f"the manifest does not list {name}", hint=AGAIN)
        if not path.exists():
            raise LdmrtError(where, "missing file", expected=path, hint="export again")
        check_inside(self.bundle, path, where)
        return plain_file(where, path)

    def json(self, name: str) -> dict[str, Any]:
        """Read the JSON object in a file."""
        return read_json("bundle", self.file(name))

    def graph(self, component: str, name: str) -> None:
        """Refuse an ONNX file that is not of the bundle, or whose weights are not."""
        folder = name.rpartition("/")[0]
        for location in sorted(locations(component, self.file(name, component))):
            inside = f"{folder}/{PurePosixPath(location)}"
            if not is_inside(location.removeprefix("./")) or not self.has(inside):
                problem, expected = f"cannot load {self.bundle / name}", "weights in a file beside it"
                raise LdmrtError(component, problem, expected=expected, found=f"{location!r:.200}")
            self.file(inside, component)

    def folders_with(self, file: str) -> Iterator[str]:
        """The names of the folders that hold a file of this name."""
        names = (one.name for one in sorted(self.bundle.iterdir()) if one.is_dir())
        return (name for name in names if is_name(name) and self.has(f"{name}/{file}"))

    def files_in(self, folder: str) -> tuple[str, ...]:
        """The names of the files in a folder of the bundle, those beneath its own folders left out; none where there is
        no such folder.
        """
        path = self.bundle / folder
        there = sorted(one.name for one in path.iterdir() if one.is_file()) if path.is_dir() else []
        return tuple(name for name in there if self.has(f"{folder}/{name}"))


def check_inside(bundle: Path, path: Path, where: str = "bundle") -> None:
    """Refuse a path that leads out of the bundle by a link, of the file or of a folder above it."""
    try:
        real, roots = path.resolve(), _roots(bundle.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle
        raise LdmrtError(where, f"cannot read {path}", found=error) from None
    if not any(real.is_relative_to(root) for root in roots):
        problem, hint = f"{path} is a link that leads out of the bundle", "copy the bundle with `cp -rL`"
        raise LdmrtError(where, problem, found=real, hint=hint)


def _roots(bundle: Path) -> tuple[Path, ...]:
    """The bundle's folder; of a snapshot of the Hugging Face cache also the store that its links lead to."""
    for snapshots in bundle.parents:
        store = snapshots.parent / "blobs"
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--") and store.is_dir():
            return bundle, store.resolve() if not store.is_symlink() else bundle
    return (bundle,)
