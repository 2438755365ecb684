"""A lock that lets one training at a time use a folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.lock import file_lock


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other trainings out of the folder; folders created for the lock are removed again if they are empty."""
    lock = out / "training" / "lock"
    created = [folder for folder in (lock.parent, out) if not folder.exists()]
    try:
        with contextlib.ExitStack() as held:
            try:
                lock.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(file_lock(lock, "train", f"{out} is in use", "another --out"))
            except OSError as error:
                raise LdmrtError("train", f"cannot write to {out}", found=error.strerror) from None
            yield
    finally:
        for folder in created:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()
