"""Files and folders that are whole or not there: written under a temporary name and renamed.

The name tells which process writes them, so that the next one removes the files that a killed process has left.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO

from .owners import Owner

TEMPORARY = re.compile(r"\..*\.ldmrt-([0-9a-f]{8}-[0-9]+-[0-9]+)-[0-9a-f]{8}\.tmp", re.DOTALL)
IDLE = 86400  # seconds without a write, after which no process of another host is still writing
LONGEST = 100  # bytes of a name that its temporary name repeats
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF)  # EBADF: open for reading


def temporary_name(name: str, suffix: str = ".tmp") -> str:
    """Make a hidden name for a file that shall become `name`; it tells which process writes it."""
    return f"{temporary_prefix(name)}{Owner.current()}-{secrets.token_hex(4)}{suffix}"


def temporary_prefix(name: str) -> str:
    """Return the beginning of all temporary names of `name`."""
    content = os.fsencode(name)
    if len(content) > LONGEST:
        digest = hashlib.sha256(content).hexdigest()[:8]
        name = f"{content[:LONGEST].decode('utf-8', 'ignore')}-{digest}"
    return f".{name}.ldmrt-"


def is_abandoned(path: Path, owner: Owner | None) -> bool:
    """Tell whether the process that made a temporary file or folder has ended.

    Nothing is known of a process of another host: it is taken to have ended when nothing was written for a day.
    """
    if owner is not None and owner.is_here:
        return owner.is_dead
    write_times = [0.0]
    for file in (path, *path.rglob("*")):
        with contextlib.suppress(OSError):
            write_times.append(file.lstat().st_mtime)
    return time.time() - max(write_times) > IDLE


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files and folders in `folder` whose process has ended, as a killed one leaves them."""
    try:
        names = [name for name in os.listdir(folder) if TEMPORARY.fullmatch(name)]
    except OSError:
        return
    for name in names:
        match, path = TEMPORARY.fullmatch(name), folder / name
        if match and is_abandoned(path, Owner.parse(match[1])):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, a folder or a link, not what the link leads to, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@cache
def _remove_abandoned_once(folder: Path) -> None:
    """Do as `remove_abandoned`, once for each folder in the life of this process."""
    remove_abandoned(folder)


@contextlib.contextmanager
def temporary_folder(place: Path) -> Iterator[Path]:
    """Make a private folder beside `place`, and remove it when the block ends, unless it was moved."""
    remove_abandoned(place.parent)
    work = place.parent / temporary_name(place.name)
    work.mkdir(mode=0o700)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def sync(handle: int) -> None:
    """Wait until a file is on the disk, where the file system can tell.

    Without it a power failure may leave a file its new name and not its contents.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def sync_folder(folder: Path, *, whole: bool = False) -> None:
    """Wait until the names in a folder are on the disk; with `whole`, all files and folders in it too."""
    for path in [*(folder.rglob("*") if whole else ()), folder]:
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            continue
        try:
            handle = os.open(path, os.O_RDONLY)
        except PermissionError:  # folders on Windows, and files that only their owner may read
            continue
        try:
            sync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the name of a file into errors of the system that name none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def link_or_copy(old: str | Path, new: str | Path) -> None:
    """Give a file a second name, or copy it to a file system without links; what a link leads to is taken.

    Files here are replaced and never changed, so neither name sees what becomes of the other.
    """
    try:
        os.link(os.path.realpath(old), new)
    except OSError:
        with naming(Path(new)):
            shutil.copy2(old, new)


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that takes the place of `path` when the block ends, and is removed when the block raises.

    A device or a pipe, such as /dev/stdout, is written to directly.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        with path.open("wb") as file:
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned_once(path.parent)
    work = path.parent / temporary_name(path.name)
    handle = os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with naming(path), os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            sync(file.fileno())
        os.chmod(work, 0o644)
        os.replace(work, path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(work)
        raise
