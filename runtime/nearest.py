"""Suggestions for misspelt names."""

import difflib
import re
from collections.abc import Collection, Iterable

from ldmrt.runtime.errors import LdmrtError

LONGEST = 100  # characters of a misspelt name that are compared
SHORTEST = 2  # characters of a name's beginning that are enough


def nearest(word: object, names: Iterable[str]) -> str | None:
    """Return the name that was most likely meant by `word`, or None.

    Case, spaces and punctuation make no difference, and "DPM++" is "dpmpp". The beginning of a name is enough, and so
    is a part of it between underscores or dashes.
    """
    known = list(dict.fromkeys(names))
    keys = {_plain(name): name for name in reversed(known)}
    for name in known:
        for part in re.split(r"[_-]", name):
            keys.setdefault(_plain(part), name)
    spelt = _plain(str(word)[:LONGEST])
    if spelt in keys:
        return keys[spelt]
    begun = [name for name in known if len(spelt) >= SHORTEST and _plain(name).startswith(spelt)]
    close = difflib.get_close_matches(spelt, keys, n=1)
    return begun[0] if begun else keys[close[0]] if close else None


def suggestion(word: object, names: Iterable[str]) -> str:
    """Return ", did you mean 'NAME'?" for the end of an error about an unknown name; empty where no name is near."""
    name = nearest(word, names)
    return "" if name is None else f", did you mean {name!r}?"


def check_known(where: str, names: Iterable[str], components: Collection[str]) -> None:
    """Raise an `LdmrtError` for the first name that is not a component."""
    for name in names:
        if name not in components:
            problem = f"no component {name!r}{suggestion(name, components)}"
            raise LdmrtError(where, problem, expected=", ".join(components))


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold().replace("+", "p") if letter.isalnum())
