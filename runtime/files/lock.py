"""One process at a time changes a folder.

The operating system holds a lock file, so that of a process that was killed it is free at once, on this host or
another; what is written in it says who has it, and decides on file systems that have no locks.
"""

import contextlib
import errno
import os
import platform
import stat
from collections.abc import Iterator
from pathlib import Path

from ldmrt.runtime.errors import LdmrtError

from .owners import Owner
from .writing import temporary_prefix

LOCK = ".ldmrt-lock"
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # some network file systems
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def bundle_lock(bundle: Path) -> Iterator[None]:
    """Hold the lock of a bundle that is there or shall be: a file beside it, or in it where nothing can be written
    beside it. An `LdmrtError` says who has it, if anybody has.
    """
    bundle = bundle.resolve()
    within = bundle / LOCK
    busy, hint = f"{bundle} is being changed", "wait until it has ended"
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(file_lock(lock_beside(bundle), "bundle", busy, hint))
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
            try:
                held.enter_context(file_lock(within, "bundle", busy, hint))
            except OSError as inner:
                raise LdmrtError("bundle", f"cannot write to {bundle}", found=inner.strerror) from None
        yield


def lock_beside(path: Path) -> Path:
    """Name the lock file of a file or folder that is there or shall be."""
    return path.with_name(f"{temporary_prefix(path.name)}lock")


@contextlib.contextmanager
def file_lock(path: Path, where: str, busy: str, hint: str) -> Iterator[None]:
    """Hold the lock file `path`, which is removed afterwards. While somebody else has it, raise an `LdmrtError` of
    `busy` and who that is.
    """
    handle = _open(path, where, busy, hint)
    try:
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, f"{Owner.current()}\nprocess {os.getpid()} on {platform.node()}\n".encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def _open(path: Path, where: str, busy: str, hint: str) -> int:
    """A handle of the lock file, which nobody else holds."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise LdmrtError(where, "cannot lock", expected="a regular file", found=path)
            if not _take(handle):
                raise _refused(path, handle, where, busy, hint)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # who held it has just removed it


def _take(handle: int) -> bool:
    """Lock a file for as long as it is open; where the system has no locks, by what is written in it."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except ImportError:
        return _is_free(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return _is_free(handle)
    return True


def _is_free(handle: int) -> bool:
    owner = Owner.parse(_written(handle)[0])
    return owner is None or owner.is_dead


def _written(handle: int) -> list[str]:
    """Who has the lock: for `Owner.parse`, and for people."""
    os.lseek(handle, 0, os.SEEK_SET)
    return [*os.read(handle, 1000).decode(errors="replace").splitlines(), "", ""][:2]


def _refused(path: Path, handle: int, where: str, busy: str, hint: str) -> LdmrtError:
    """Of another host's process nothing is known: a person has to look."""
    owner, who = _written(handle)
    known = Owner.parse(owner)
    if known is not None and not known.is_here:
        hint += f", or remove {path} if that process is no more"
    return LdmrtError(where, f"{busy} by {who or 'another process'}", hint=hint)
