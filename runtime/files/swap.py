"""A folder that takes the place of another in one step, or in two of which the first can be taken back."""

import contextlib
import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

from .owners import Owner
from .writing import is_abandoned, remove, sync_folder, temporary_name, temporary_prefix

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's fcntl.h and fs.h
ASIDE = ".old"  # the suffix of the replaced folder, between the two steps

_Rename = Callable[[int, bytes, int, bytes, int], int]


def replace_folder(new: Path, place: Path) -> None:
    """Put the folder `new` in its place; the folder that stood there, if any, afterwards stands where `new` was.

    A process that is killed leaves the one or the other in its place. Where the system cannot exchange two names at
    once it may leave neither, which `recover` repairs. Nor does a power failure leave half a folder.
    """
    sync_folder(new, whole=True)
    _replace(new, place)
    sync_folder(place.parent)


def _replace(new: Path, place: Path) -> None:
    """Exchange two folders by one call or, where there is none, by three renames."""
    if not place.exists():
        os.rename(new, place)
        return
    if _exchange(new, place):
        return
    aside = place.with_name(temporary_name(place.name, ASIDE))
    os.rename(place, aside)
    try:
        os.rename(new, place)
    except BaseException:
        with contextlib.suppress(OSError):
            os.rename(aside, place)
        raise
    os.rename(aside, new)


def recover(place: Path) -> None:
    """Put back the folder that a process, killed in `replace_folder`, has moved aside.

    Where the new folder already stands in its place, the old one is removed.
    """
    with contextlib.suppress(OSError, ValueError):  # ValueError: a NUL in the name
        place = place.resolve()
        prefix = temporary_prefix(place.name)
        for name in sorted(os.listdir(place.parent)):
            aside = place.parent / name
            if not (name.startswith(prefix) and name.endswith(ASIDE)):
                continue
            owner = Owner.parse(name.removeprefix(prefix).removesuffix(ASIDE).rpartition("-")[0])
            if owner is None or not is_abandoned(aside, owner):
                continue
            if place.exists():
                remove(aside)
            else:
                os.rename(aside, place)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two names at once; False where the system or the file system has no such call."""
    rename = _renameat2()
    return rename is not None and rename(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0


@cache
def _renameat2() -> _Rename | None:
    """Return the C library's renameat2; None where it has none, as on every system but Linux."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library of all
        return None
    rename.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return rename
