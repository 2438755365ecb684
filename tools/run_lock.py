"""One training a folder: a lock file that names its owner, and is free when its owner has ended in any way."""

import contextlib
import fcntl
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from ldmrt.runtime import LdmrtError


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other trainings out of the folder; what this made of it goes again where nothing else was written."""
    lock = out / "training" / "lock"
    made = [folder for folder in (lock.parent, out) if not folder.exists()]
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = _take(lock)
    except OSError as error:
        raise LdmrtError("train", f"cannot write to {out}", found=error.strerror) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        os.close(handle)
        for folder in made:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def _take(lock: Path) -> int:
    """A handle of the lock file, which the system locks for as long as this process lives."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            _refuse_owner(lock, handle)
            if lock.exists() and os.path.samestat(os.fstat(handle), lock.stat()):
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": platform.node()}).encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its owner removed it in the meantime


def _refuse_owner(lock: Path, handle: int) -> None:
    """Refuse a folder that another process trains in. One that has ended on this host is no owner any more."""
    alive = False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        alive = True
    try:
        owner = json.loads(os.pread(handle, 4096, 0))
        host, pid = str(owner["host"]), int(owner["pid"])
    except (ValueError, KeyError, TypeError):
        host, pid = platform.node(), 0
    if alive or host != platform.node():
        hint = "another --out" if alive else f"another --out, or remove {lock} if that process has ended"
        raise LdmrtError("train", f"{lock.parent.parent} is in use by process {pid} on {host}", hint=hint)
