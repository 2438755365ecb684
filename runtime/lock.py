"""One command at a time changes a bundle.

The lock is a file beside the bundle, or in it where nothing can be written beside it. The operating system holds it,
so that of a process that was killed it is free at once, on this host or another; what is written in it says who has it.
"""

import contextlib
import errno
import os
import platform
import stat
from collections.abc import Iterator
from pathlib import Path

from .errors import LdmrtError
from .owners import Owner

LOCK = ".ldmrt-lock"
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # some network file systems
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def bundle_lock(bundle: Path) -> Iterator[None]:
    """Hold the lock of a bundle that is there or shall be; an `LdmrtError` says who has it, if anybody has."""
    bundle = bundle.resolve()
    beside, within = bundle.with_name(f".{bundle.name[:100]}{LOCK}"), bundle / LOCK
    try:
        path, handle = beside, _open(bundle, beside)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        try:
            path, handle = within, _open(bundle, within)
        except OSError as inner:
            raise LdmrtError("bundle", f"cannot write to {bundle}", found=inner.strerror) from None
    try:
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, f"{Owner.current()}\nprocess {os.getpid()} on {platform.node()}\n".encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def _open(bundle: Path, path: Path) -> int:
    """A handle of the lock file, which nobody else holds."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise LdmrtError("bundle", f"cannot lock {bundle}", expected="a regular file", found=path)
            if not _take(handle):
                raise _refused(bundle, handle)
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


def _refused(bundle: Path, handle: int) -> LdmrtError:
    who = _written(handle)[1] or "another process"
    return LdmrtError("bundle", f"{bundle} is being changed by {who}", hint="wait until it has ended")
