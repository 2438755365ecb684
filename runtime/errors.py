"""Define the error that a user can cause, its four kinds, the warning, and how other libraries' messages are quoted."""

import copyreg
import unicodedata
from dataclasses import dataclass
from typing import Any, TypeVar

LONGEST = 1000  # characters of one part of a message: a prompt may be a megabyte
MOST_SHOWN = 500  # characters of another library's message
BEFORE, AFTER = 60, 40  # characters of a text around the one that a caret points at


Kind = TypeVar("Kind", bound="LdmrtError")


@dataclass(frozen=True)
class Place:
    """Points at a character of a text, which a message shows with a caret under it.

    Attributes:
        text: The whole text, such as a prompt.
        at: The index of the character; that of the end is the text's length.
    """

    text: str
    at: int

    def __str__(self) -> str:
        """Write the part of the text around the character as one line, and a caret under it as the next."""
        first, last = max(0, self.at - BEFORE), self.at + AFTER
        before, after = printable(self.text[first : self.at]), printable(self.text[self.at : last])
        before, after = "... " * (first > 0) + before, after + " ..." * (last < len(self.text))
        return f"    {before}{after}\n    {' ' * _columns(before)}^"


class LdmrtError(Exception):
    """Bad input, said once and clearly: what it concerns, what was expected, what was found, what to do next.

    The command line prints it and exits with 2; a library user catches it. It is never used for our own bugs.
    """

    def __init__(
        self,
        where: str,
        problem: str,
        *,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
        place: Place | None = None,
    ) -> None:
        """Make the message of its parts.

        Args:
            where: The component, option or file that the error is about.
            problem: What is wrong.
            expected: What was expected; its text is kept.
            found: What was found; its text is kept.
            hint: The next command, or what to change.
            place: What the error is about, as a place in a text that the user wrote.
        """
        self.where, self.problem, self.hint, self.place = where, problem, hint, place
        # Their words alone: the objects themselves may be large, or such that no other process can have them.
        self.expected = None if expected is None else str(expected)
        self.found = None if found is None else str(found)
        parts = [f"{shortened(where)}: {shortened(problem)}"]
        if expected is not None:
            parts.append(f"expected {shortened(self.expected)}")
        if found is not None:
            parts.append(f"found {shortened(self.found)}")
        message = printable("; ".join(parts)) + (f"\n{place}" if place else "")
        message += f"\n  try: {printable(shortened(hint))}" if hint else ""
        super().__init__(message)

    def as_kind(self, kind: "type[Kind]", hint: str | None = None) -> "Kind":
        """Return this error as another kind, with another hint if one is given."""
        parts: dict[str, Any] = {"expected": self.expected, "found": self.found, "place": self.place}
        return kind(self.where, self.problem, **parts, hint=hint or self.hint)

    def about(self: "Kind", where: str) -> "Kind":
        """Return this error as one about another component, option or file."""
        parts: dict[str, Any] = {"expected": self.expected, "found": self.found, "place": self.place}
        return type(self)(where, self.problem, **parts, hint=self.hint)

    def placed(self: "Kind", place: Place) -> "Kind":
        """Return this error as one about a place in another text."""
        parts: dict[str, Any] = {"expected": self.expected, "found": self.found, "hint": self.hint}
        return type(self)(self.where, self.problem, **parts, place=place)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy the message and all attributes, whatever arguments the class takes."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class InvalidRequest(LdmrtError):
    """A request asks for what no model can do, or for what this one cannot."""


class BundleError(LdmrtError):
    """A bundle is missing or damaged, is not one, or lacks a part that was asked of it."""


class EngineNotFound(LdmrtError):
    """No engine of a bundle is for this backend, GPU and these shapes."""


class NotFinite(LdmrtError):
    """Latents or an image hold infinities or NaN."""


class LdmrtWarning(UserWarning):
    """Something was changed or left out of what the user asked for; the result is still valid."""


def _columns(text: str) -> int:
    """Count the columns of a terminal that a text fills: two for a wide character, none for one that combines."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def printable(text: str) -> str:
    """Escape what would move the cursor, change colours or begin a new line: names in files may hold anything."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def shortened(text: object, most: int = LONGEST) -> str:
    """Return the beginning and the end of a text, at most so many characters."""
    whole = str(text)
    half = (most - 5) // 2
    return whole if len(whole) <= most else f"{whole[:half]} ... {whole[-half:]}"


def first_line(error: BaseException) -> str:
    """Put another library's message into one line, its beginning and its end: the cause may stand in either.

    Of an `LdmrtError` it is the message without its place and hint, of an error without a message its `repr`.
    """
    message = str(error).partition("\n")[0] if isinstance(error, LdmrtError) else str(error)
    return shortened(" ".join((message.strip() or repr(error)).split()), MOST_SHOWN)
