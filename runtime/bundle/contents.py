"""The files that a bundle may hold, and where: regular files inside its folder, by plain names.

A bundle from a stranger may name any path, or hold a link to one. The one exception is a snapshot in the Hugging Face
cache, whose files are links into the cache's own store of the same repository.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ldmrt.runtime.errors import BundleError, LdmrtError
from ldmrt.runtime.files.reading import JsonObject, plain_file, read_json

from .external_data import locations

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(?:[.-][A-Za-z0-9_]+)*")  # of components, graphs and tokenizers
LONGEST = 100  # characters of such a name
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f\\:*?"<>|]')  # control characters, and those that Windows reserves
AGAIN = "export again, or copy the bundle again"


def is_name(text: object) -> bool:
    """Tell whether a text can be the name of a component, of a graph or of a tokenizer."""
    return isinstance(text, str) and len(text) <= LONGEST and NAME.fullmatch(text) is not None


def is_inside(name: object) -> bool:
    """Tell whether a text is a relative path that stays inside the bundle, without detours such as "./" or "//"."""
    if not isinstance(name, str) or not name or FORBIDDEN.search(name) or len(name) > 1000:
        return False
    pure = PurePosixPath(name)
    return not pure.is_absolute() and ".." not in pure.parts and pure.as_posix() == name and name != "."


@contextmanager
def bundle_errors() -> Iterator[None]:
    """Raise errors of files that are read within the block as `BundleError`s."""
    try:
        yield
    except BundleError:
        raise
    except LdmrtError as error:
        raise error.as_kind(BundleError) from None


@dataclass(frozen=True)
class Contents:
    """The files of one bundle: those that its manifest lists, or all where it has none."""

    bundle: Path
    lists: Mapping[str, object] | None = field(repr=False)  # by path; None without a manifest

    def has(self, name: str) -> bool:
        """Tell whether a file exists and is listed."""
        return (self.lists is None or name in self.lists) and (self.bundle / name).is_file()

    def file(self, name: str, where: str = "bundle") -> Path:
        """Return the path of a file that may be read.

        Raises:
            BundleError: The file is missing, is not listed, lies outside the bundle, or is not a regular file.
        """
        path = self.bundle / name
        if not is_inside(name):
            raise BundleError(where, f"unsupported file name {name!r:.200}", expected="a path inside the bundle")
        if self.lists is not None and name not in self.lists:
            raise BundleError(where, f"the manifest does not list {name}", hint=AGAIN)
        if not path.exists():
            raise BundleError(where, "missing file", expected=path, hint="export again")
        check_inside(self.bundle, path, where)
        with bundle_errors():
            return plain_file(where, path)

    def json(self, name: str) -> JsonObject:
        """Read the JSON object in a file."""
        with bundle_errors():
            return read_json("bundle", self.file(name))

    def graph(self, component: str, name: str) -> None:
        """Refuse an ONNX file that lies outside the bundle, or whose weights do."""
        folder = name.rpartition("/")[0]
        for location in sorted(locations(component, self.file(name, component))):
            inside = f"{folder}/{PurePosixPath(location)}"
            if not is_inside(location.removeprefix("./")) or not self.has(inside):
                problem, expected = f"cannot load {self.bundle / name}", "weights in a file beside it"
                raise BundleError(component, problem, expected=expected, found=f"{location!r:.200}")
            self.file(inside, component)

    def folders_with(self, file: str) -> Iterator[str]:
        """Yield the names of the folders that hold a file of this name."""
        names = (path.name for path in sorted(self.bundle.iterdir()) if path.is_dir())
        return (name for name in names if is_name(name) and self.has(f"{name}/{file}"))

    def files_in(self, folder: str) -> tuple[str, ...]:
        """Return the names of the files in a folder of the bundle, without subfolders; none if it does not exist."""
        path = self.bundle / folder
        names = sorted(file.name for file in path.iterdir() if file.is_file()) if path.is_dir() else []
        return tuple(name for name in names if self.has(f"{folder}/{name}"))


def check_inside(bundle: Path, path: Path, where: str = "bundle") -> None:
    """Refuse a path that leads out of the bundle by a link, of the file or of a folder above it."""
    try:
        real, roots = path.resolve(), _roots(bundle.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle
        raise BundleError(where, f"cannot read {path}", found=error) from None
    if not any(real.is_relative_to(root) for root in roots):
        problem, hint = f"{path} is a link that leads out of the bundle", "copy the bundle with `cp -rL`"
        raise BundleError(where, problem, found=real, hint=hint)


def _roots(bundle: Path) -> tuple[Path, ...]:
    """Return the folders where files of a bundle may lie: its own, and for a snapshot of the hub's cache its store."""
    for snapshots in bundle.parents:
        store = snapshots.parent / "blobs"
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--") and store.is_dir():
            return bundle, store.resolve() if not store.is_symlink() else bundle
    return (bundle,)
