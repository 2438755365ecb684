"""Files and folders that are whole or not there: written under a temporary name and renamed.

The name says which process is at it, so that what one leaves that was killed is removed by the next.
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
IDLE = 86400  # seconds without a write: nobody on another host is still at it
LONGEST = 100  # bytes of a name that its temporary name repeats
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF)  # EBADF: open for reading


def temporary_name(name: str, suffix: str = ".tmp") -> str:
    """Make a hidden name for what shall become `name`; it says which process is at it."""
    return f"{temporary_prefix(name)}{Owner.current()}-{secrets.token_hex(4)}{suffix}"


def temporary_prefix(name: str) -> str:
    """Return what the temporary names of `name` begin with."""
    content = os.fsencode(name)
    if len(content) > LONGEST:
        digest = hashlib.sha256(content).hexdigest()[:8]
        name = f"{content[:LONGEST].decode('utf-8', 'ignore')}-{digest}"
    return f".{name}.ldmrt-"


def is_abandoned(path: Path, owner: Owner | None) -> bool:
    """Whether the process that made a temporary file or folder is gone. Of another host's process nothing is known:
    it is taken to be gone when nothing was written for a day.
    """
    if owner is not None and owner.is_here:
        return owner.is_dead
    written = [0.0]
    for one in (path, *path.rglob("*")):
        with contextlib.suppress(OSError):
            written.append(one.lstat().st_mtime)
    return time.time() - max(written) > IDLE


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files and folders in `folder` whose process is gone, as a killed one leaves them."""
    try:
        names = [name for name in os.listdir(folder) if TEMPORARY.fullmatch(name)]
    except OSError:
        return
    for name in names:
        found, path = TEMPORARY.fullmatch(name), folder / name
        if found and is_abandoned(path, Owner.parse(found[1])):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder as far as that is possible; of a link, the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@cache
def _remove_abandoned_once(folder: Path) -> None:
    remove_abandoned(folder)


@contextlib.contextmanager
def temporary_folder(place: Path) -> Iterator[Path]:
    """A private folder beside `place` that is gone when the block ends, if it is still there."""
    remove_abandoned(place.parent)
    work = place.parent / temporary_name(place.name)
    work.mkdir(mode=0o700)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def sync(handle: int) -> None:
    """Wait until a file is on the disk: the system may else keep its new name through a power failure, and not what is
    in it. File systems that cannot tell are not asked again.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def sync_folder(folder: Path, *, whole: bool = False) -> None:
    """Wait until the names in a folder are on the disk; of a `whole` one, all files and folders in it too."""
    for path in [*(folder.rglob("*") if whole else ()), folder]:
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            continue
        try:
            handle = os.open(path, os.O_RDONLY)
        except PermissionError:  # of folders on Windows, and of files that only their owner reads
            continue
        try:
            sync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give errors of the system that name no file, such as a full disk's, this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends well, and leaves no trace when it does not. What
    is no regular file, such as /dev/stdout or a pipe, is written to as it is.
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
