"""Which process made a temporary file or holds a lock, and whether it still runs.

A process is known by its host, its number and its start: numbers are given again, and hosts share file systems.
"""

import contextlib
import hashlib
import os
import platform
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Owner:
    """One process of one host."""

    host: str  # eight hexadecimal digits
    pid: int
    start: int  # clock ticks since the boot; 0 where the system does not say

    @classmethod
    def current(cls) -> "Owner":
        """Name this process."""
        _, start = _state(os.getpid())
        return cls(host_digest(), os.getpid(), start)

    @classmethod
    def parse(cls, text: str) -> "Owner | None":
        """Read what `str` gave; None where it is something else."""
        found = re.fullmatch(r"([0-9a-f]{8})-([0-9]{1,10})-([0-9]{1,20})", text)
        return cls(found[1], int(found[2]), int(found[3])) if found else None

    def __str__(self) -> str:
        return f"{self.host}-{self.pid}-{self.start}"

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this host, and of this boot of it."""
        return self.host == host_digest()

    @property
    def is_dead(self) -> bool:
        """Whether the process is known to have ended; of another host nothing is known."""
        if not self.is_here:
            return False
        state, start = _state(self.pid)
        return state in ("", "Z", "X") or (0 != self.start != start)


@cache
def host_digest() -> str:
    """Eight digits that tell this host, this boot of it and this namespace of process numbers from others."""
    known = [platform.node()]
    with contextlib.suppress(OSError):
        known.append((PROC / "sys/kernel/random/boot_id").read_text())
        known.append(os.readlink(PROC / "self/ns/pid"))
    return hashlib.sha256("\n".join(known).encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _state(pid: int) -> tuple[str, int]:
    """The letter of a process's state ("" where there is none such) and its start."""
    if not (PROC / "self/stat").exists():
        return ("R" if _answers(pid) else ""), 0
    try:
        words = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return "", 0
    return words[0], int(words[19])


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
