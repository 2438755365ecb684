"""Which files were compared with their SHA-256 before, so that gigabytes are not read at every start.

A file counts as unchanged while its size, inode and times of modification and of change are those of the comparison.
Who turns back the clock, or writes past the file system, goes unnoticed: `ldmrt verify` and `inspect` read everything.
"""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from .errors import LdmrtError
from .files import cache_folder, read_json, sha256, write_atomically

SETTLED = 2e9  # nanoseconds: a file that is younger may change once more within one tick of its file system's clock
Stamps = dict[str, list[object]]


class Stamped:
    """SHA-256 of the files of one bundle, from the user's cache where they are known to it."""

    def __init__(self, bundle: Path) -> None:
        cache, name = cache_folder(), hashlib.sha256(os.fsencode(bundle.resolve())).hexdigest()[:32]
        self._path, self._known = cache / "checked" / f"{name}.json" if cache else None, dict[str, list[object]]()
        if self._path is not None:
            with contextlib.suppress(LdmrtError):
                self._known = read_json("cache", self._path)
        self._seen: Stamps = {}

    def sha256(self, name: str, file: Path) -> str:
        """Return the SHA-256 of `file`, which the bundle calls `name`."""
        there = file.stat()
        state: list[object] = [there.st_size, there.st_ino, there.st_mtime_ns, there.st_ctime_ns]
        known = self._known.get(name)
        if isinstance(known, list) and known[:-1] == state and isinstance(known[-1], str):
            digest = known[-1]
        else:
            digest = sha256(file)
        if time.time_ns() - max(there.st_mtime_ns, there.st_ctime_ns) > SETTLED:
            self._seen[name] = [*state, digest]
        return digest

    def keep(self) -> None:
        """Write what was seen, where that is possible."""
        if self._path is None or self._seen == self._known:
            return
        with contextlib.suppress(OSError), write_atomically(self._path) as file:
            file.write(json.dumps(self._seen).encode())
