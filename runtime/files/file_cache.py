"""Results of reading files, kept so that gigabytes are not read, or thousands of images decoded, at every start.

A file counts as unchanged while its size, inode and times of modification and of change are those of then. A file that
was changed with its times restored is not noticed: `ldmrt verify` and `inspect` read everything.
"""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from ldmrt.runtime.errors import LdmrtError

from .reading import cache_folder, parse_json, read_bytes, sha256
from .writing import write_atomically

SETTLED = 2e9  # nanoseconds: a file that is younger may change once more within one tick of its file system's clock
CACHE_BYTES = 1 << 30  # millions of images


class FileCache:
    """Keeps one value for each file of a folder, in the user's cache where there is one."""

    def __init__(self, kind: str, folder: Path, version: str = "") -> None:
        """Read the values of earlier runs.

        Args:
            kind: What the values are: a folder of the cache.
            folder: The folder that the files are in.
            version: How the values were made; those of another version are not read.
        """
        key = os.fsencode(folder.resolve()) + (f"\n{version}".encode() if version else b"")
        cache, name = cache_folder(), hashlib.sha256(key).hexdigest()[:32]
        self._path = cache / kind / f"{name}.json" if cache else None
        self._known: dict[str, object] = {}
        if self._path is not None:
            with contextlib.suppress(LdmrtError):
                self._known = parse_json("cache", str(self._path), read_bytes("cache", self._path, CACHE_BYTES))
        self._seen: dict[str, object] = {}

    def get(self, name: str, state: os.stat_result) -> object:
        """Return the value that was added for the file `name` in this state; None where it is new or has changed."""
        known = self._known.get(name)
        return known[-1] if isinstance(known, list) and known[:-1] == stamp(state) else None

    def add(self, name: str, state: os.stat_result, value: str | int) -> None:
        """Add the value of the file `name`, unless the file may still change."""
        if time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) > SETTLED:
            self._seen[name] = [*stamp(state), value]

    def keep(self) -> None:
        """Write the values that were added, where that is possible; those of other files are forgotten."""
        if self._path is None or self._seen == self._known:
            return
        with contextlib.suppress(OSError), write_atomically(self._path) as file:
            file.write(json.dumps(self._seen).encode())


class HashCache(FileCache):
    """Keeps the SHA-256 of the files of one bundle."""

    def __init__(self, bundle: Path) -> None:
        """Read the hashes of earlier runs."""
        super().__init__("checked", bundle)

    def sha256(self, name: str, file: Path) -> str:
        """Return the SHA-256 of `file`, whose path in the bundle is `name`; read it only where it has changed."""
        state = file.stat()
        known = self.get(name, state)
        digest = known if isinstance(known, str) else sha256(file)
        self.add(name, state, digest)
        return digest


def stamp(state: os.stat_result) -> list[int]:
    """Return the facts of a file of which one changes with every write: size, inode, modification and change times."""
    return [state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns]
