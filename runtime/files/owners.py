"""The process that made a temporary file or holds a lock, and whether it still runs.

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
    """Identifies one process of one host."""

    host: str  # eight hexadecimal digits
    pid: int
    start: int  # clock ticks since the boot; 0 where the system does not say

    @classmethod
    def current(cls) -> "Owner":
        """Return this process."""
        _, start = _state(os.getpid())
        return cls(host_digest(), os.getpid(), start)

    @classmethod
    def parse(cls, text: str) -> "Owner | None":
        """Parse an owner's text, as `str` writes it; None where the text is not of that form."""
        match = re.fullmatch(r"([0-9a-f]{8})-([0-9]{1,10})-([0-9]{1,20})", text)
        return cls(match[1], int(match[2]), int(match[3])) if match else None

    def __str__(self) -> str:
        """Join host, number and start, as they stand in names of temporary files."""
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
    """Compute eight digits that tell this host, its boot and this namespace of process numbers from others."""
    facts = [platform.node()]
    with contextlib.suppress(OSError):
        facts.append((PROC / "sys/kernel/random/boot_id").read_text())
        facts.append(os.readlink(PROC / "self/ns/pid"))
    return hashlib.sha256("\n".join(facts).encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _state(pid: int) -> tuple[str, int]:
    """Return the letter of a process's state, "" where no process has this number, and its start."""
    if not (PROC / "self/stat").exists():
        return ("R" if _answers(pid) else ""), 0
    try:
        words = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return "", 0
    return words[0], int(words[19])


def _answers(pid: int) -> bool:
    """Tell whether a process has this number, on systems without /proc."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
