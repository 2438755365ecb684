"""Suggestions for misspelt names."""

import difflib
import re
from collections.abc import Iterable

LONGEST = 100  # characters of a misspelt name that are compared
ABBREVIATED = 3  # letters of an abbreviation
SHORTEST = 2  # characters of a name's beginning that are enough


def nearest(word: object, names: Iterable[str]) -> str | None:
    """Return the name that was most likely meant by `word`, or None.

    Case, spaces and punctuation make no difference, and "DPM++" is "dpmpp". The beginning of a name is enough, and so
    is a part of it between underscores or dashes, or an abbreviation of three letters: "ort" is "onnxruntime".
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
    begun += [name for name in known if len(spelt) == ABBREVIATED and _abbreviates(spelt, _plain(name))]
    close = difflib.get_close_matches(spelt, keys, n=1)
    return begun[0] if begun else keys[close[0]] if close else None


def suggestion(word: object, names: Iterable[str]) -> str:
    """Return ", did you mean 'NAME'?" for the end of an error about an unknown name; empty where no name is near."""
    name = nearest(word, names)
    return "" if name is None else f", did you mean {name!r}?"


def _abbreviates(short: str, name: str) -> bool:
    """Whether the letters of `short` stand in `name` in this order, the first of them first, and few would do so."""
    letters = iter(name)
    return name[:1] == short[:1] and len(name) > 2 * len(short) and all(letter in letters for letter in short)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold().replace("+", "p") if letter.isalnum())
