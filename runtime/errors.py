"""The one error a user can cause, and the one warning."""


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
    ) -> None:
        self.where, self.problem, self.expected, self.found, self.hint = where, problem, expected, found, hint
        parts = [f"{where}: {problem}"]
        if expected is not None:
            parts.append(f"expected {expected}")
        if found is not None:
            parts.append(f"found {found}")
        super().__init__(printable("; ".join(parts)) + (f"\n  try: {hint}" if hint else ""))


def printable(text: str) -> str:
    """Escape what would move the cursor, change colours or begin a new line: names in files may hold anything."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or what the error is where it says nothing."""
    return (str(error).strip() or repr(error)).splitlines()[0][:300]


class LdmrtWarning(UserWarning):
    """Something was changed or left out of what the user asked for; the result is still valid."""
