"""Read texts that change with the sampler's steps: [from:to:0.4], [added:0.4], [removed::0.4] and [one|other]."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ldmrt.runtime.pipeline.prompts.fragments import DEEPEST, unreadable
from ldmrt.runtime.pipeline.prompts.reading import Steps

NUMBER = re.compile(r"\s*([+-]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[0-9]+(?:[eE][+-]?[0-9]+)?))\s*\]")
PLAIN = re.compile(r"(?:[^\\\[\]():|]|\\.)+")


@dataclass(frozen=True)
class Scheduled:
    """A text that another one replaces after a step."""

    before: "Pieces"
    after: "Pieces"
    when: str  # as it is written
    at: int

    def last_step(self, text: str, steps: Steps) -> int:
        """Return the last step of `before`, which is below 1 if it has ended when the pass begins."""
        number = steps.of(self.when)
        if not math.isfinite(number):
            raise unreadable(text, self.at, f"{self.when!r:.40} is no step", expected="a step, or a share such as 0.4")
        return min(steps.count, int(number))


@dataclass(frozen=True)
class Alternating:
    """Texts that take turns, one for each step."""

    options: tuple["Pieces", ...]


Piece = str | Scheduled | Alternating
Pieces = tuple[Piece, ...]


def read_schedule(text: str, steps: Steps) -> tuple[tuple[int, str], ...]:
    """Read a text as one for each range of steps.

    Brackets that form no schedule stay in the texts, which `read_attention` reads. As in AUTOMATIC1111's program, a
    text with a "|" that is not in square brackets, or that ends in a backslash, has no schedule. Its grammar is
    ambiguous where brackets or colons follow a schedule, as in "[a:2]::", and there its parser (lark 1.1.2) finds the
    schedule or not by Python's hash seed; here it is always found.

    Args:
        text: The text.
        steps: The steps of the pass that it is read for.

    Returns:
        (last step, text) in the order of their steps, of which the last one is `steps.count`.

    Raises:
        InvalidRequest: A step is no finite number, or brackets are nested too deeply.
    """
    pieces = _Reader(text).whole()
    if pieces is None:
        return ((steps.count, text),)
    last = sorted({steps.count, *_last_steps(pieces, text, steps)})
    return tuple((step, "".join(_at_step(pieces, text, step, steps))) for step in last)


def _last_steps(pieces: Pieces, text: str, steps: Steps) -> Iterator[int]:
    """Yield the last step of every text that is replaced."""
    for piece in pieces:
        if isinstance(piece, Scheduled):
            last = piece.last_step(text, steps)
            yield from (last,) if last >= 1 else ()
            yield from _last_steps(piece.before + piece.after, text, steps)
        elif isinstance(piece, Alternating):
            yield from range(1, steps.count + 1)
            yield from _last_steps(sum(piece.options, ()), text, steps)


def _at_step(pieces: Pieces, text: str, step: int, steps: Steps) -> Iterator[str]:
    """Yield the pieces of the text at a step, which counts from 1."""
    for piece in pieces:
        if isinstance(piece, str):
            yield piece
        elif isinstance(piece, Scheduled):
            kept = piece.before if step <= piece.last_step(text, steps) else piece.after
            yield from _at_step(kept, text, step, steps)
        else:
            yield from _at_step(piece.options[(step - 1) % len(piece.options)], text, step, steps)


Found = tuple[Pieces, int]  # and where the rest begins


@dataclass
class _Reader:
    """Reads a text from left to right; what begins at a place is read once."""

    text: str
    groups: dict[int, Found | None] = field(default_factory=dict)
    depth: int = 0

    def whole(self) -> Pieces | None:
        """Return the text in parts; None where it is none of this syntax."""
        pieces: Pieces = ()
        at = 0
        while at < len(self.text):
            found, at = self.prompt(at)
            pieces += found
            if at < len(self.text):
                if self.text[at] not in "[]():":
                    return None
                pieces, at = (*pieces, self.text[at]), at + 1
        return pieces

    def prompt(self, at: int) -> Found:
        """Read what may stand between brackets and colons, perhaps nothing."""
        pieces: Pieces = ()
        while at < len(self.text):
            if plain := PLAIN.match(self.text, at):
                pieces, at = (*pieces, plain[0]), plain.end()
                continue
            found = self.group(at) if self.text[at] in "([" else None
            if found is None:
                break
            pieces, at = (*pieces, *found[0]), found[1]
        return pieces, at

    def group(self, at: int) -> Found | None:
        """Read a pair of brackets and what stands in them."""
        if at not in self.groups:
            if self.depth == DEEPEST:
                raise unreadable(self.text, at, "brackets nested too deeply", expected=f"at most {DEEPEST} levels")
            self.depth += 1
            self.groups[at] = self.round(at) if self.text[at] == "(" else self.square(at)
            self.depth -= 1
        return self.groups[at]

    def round(self, at: int) -> Found | None:
        """Read (text) or (text:weight), which stays as it is."""
        inside, end = self.prompt(at + 1)
        pieces: Pieces = ("(", *inside)
        if self.text[end : end + 1] == ":":
            weight, end = self.prompt(end + 1)
            pieces = (*pieces, ":", *weight)
        return ((*pieces, ")"), end + 1) if self.text[end : end + 1] == ")" else None

    def square(self, at: int) -> Found | None:
        """Read [text], a schedule or an alternation."""
        first, end = self.prompt(at + 1)
        separator = self.text[end : end + 1]
        if separator == "]":
            return ("[", *first, "]"), end + 1
        if separator == "|":
            options = [first]
            while self.text[end : end + 1] == "|":
                option, end = self.prompt(end + 1)
                options.append(option)
            return ((Alternating(tuple(options)),), end + 1) if self.text[end : end + 1] == "]" else None
        if separator != ":":
            return None
        second, then = self.prompt(end + 1)
        if self.text[then : then + 1] == ":" and (when := NUMBER.match(self.text, then + 1)):
            return (Scheduled(first, second, when[1], when.start(1)),), when.end()
        if when := NUMBER.match(self.text, end + 1):
            return (Scheduled((), first, when[1], when.start(1)),), when.end()
        return None
