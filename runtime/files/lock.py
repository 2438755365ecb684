"""One process at a time changes a folder.

The operating system holds a lock file, so that it is free as soon as its process is killed, on this host or another.
The file names the process that holds it; on file systems without locks that decides.
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
    """Hold the lock of a bundle that exists or is going to be written.

    The lock is a file beside the bundle, or in it where nothing can be written beside it.

    Raises:
        LdmrtError: Another process, which is named, holds the lock, or the bundle cannot be written.
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
    """Return the path of the lock file of a file or folder that exists or is going to be written."""
    return path.with_name(f"{temporary_prefix(path.name)}lock")


@contextlib.contextmanager
def file_lock(path: Path, where: str, busy: str, hint: str) -> Iterator[None]:
    """Hold a lock file, which is removed afterwards.

    Args:
        path: The lock file.
        where: What it locks, for errors.
        busy: The problem to state while another process holds it, such as "BUNDLE is being changed".
        hint: What to do then.

    Raises:
        LdmrtError: Another process, which is named, holds the lock.
        OSError: The lock file cannot be written.
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
    """Open the lock file and lock it; return its handle."""
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
        os.close(handle)  # its last owner has just removed it


def _take(handle: int) -> bool:
    """Lock a file for as long as it is open; False where another process holds it.

    Where the system has no locks, the owner that is written in the file decides.
    """
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
    """Tell whether no process that runs is written in a lock file as its owner."""
    owner = Owner.parse(_written(handle)[0])
    return owner is None or owner.is_dead


def _written(handle: int) -> list[str]:
    """Read the two lines of a lock file that name its owner: for `Owner.parse`, and for people."""
    os.lseek(handle, 0, os.SEEK_SET)
    return [*os.read(handle, 1000).decode(errors="replace").splitlines(), "", ""][:2]


def _refused(path: Path, handle: int, where: str, busy: str, hint: str) -> LdmrtError:
    """Make the error about a lock that another process holds.

    Whether a process of another host still runs is unknown here, so the hint asks a person to look.
    """
    owner_text, process = _written(handle)
    owner = Owner.parse(owner_text)
    if owner is not None and not owner.is_here:
        hint += f", or remove {path} if that process is no more"
    return LdmrtError(where, f"{busy} by {process or 'another process'}", hint=hint)
