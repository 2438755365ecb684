r"""Read the weights of a text: (more), [less], (exactly:1.3), the escapes \( \) \[ \] \\, and BREAK."""

import re

from ldmrt.runtime.pipeline.prompts.fragments import Fragment, Fragments, unreadable, weight_of

MORE, LESS = 1.1, 1 / 1.1  # of each round, and of each square bracket
TOKEN = re.compile(r"\\[()\[\]\\]|\\|\(|\[|:\s*([+-]?[.\d]+)\s*\)|\)|]|[^\\()\[\]:]+|:")
BREAK = re.compile(r"\bBREAK\b\s*")


class _Piece:
    """A piece of the text while its weight is not final."""

    def __init__(self, text: str, at: int, *, breaks: bool = False) -> None:
        self.text, self.at, self.weight, self.breaks = text, at, 1.0, breaks


def read_attention(text: str) -> tuple[Fragments, ...]:
    """Read a text as sections of fragments; between two sections stands a BREAK.

    A bracket that is never closed counts up to the end of the text, one that was never opened is a character.

    Args:
        text: The text, without schedules.

    Returns:
        At least one section with at least one fragment; neighbours of one weight are joined.

    Raises:
        InvalidRequest: A weight is no number, or a BREAK stands in brackets.
    """
    pieces = list[_Piece]()
    round_, square = list[int](), list[int]()

    def weigh(first: int, weight: float) -> None:
        for piece in pieces[first:]:
            piece.weight *= weight

    for match in TOKEN.finditer(text):
        token, weight = match[0], match[1]
        if token.startswith("\\"):
            pieces.append(_Piece(token[1:], match.start()))
        elif token == "(":
            round_.append(len(pieces))
        elif token == "[":
            square.append(len(pieces))
        elif weight is not None and round_:
            weigh(round_.pop(), weight_of(text, weight, match.start(1)))
        elif token == ")" and round_:
            weigh(round_.pop(), MORE)
        elif token == "]" and square:
            weigh(square.pop(), LESS)
        else:
            last = 0
            for gap in BREAK.finditer(token):
                pieces.append(_Piece(token[last : gap.start()].rstrip(), match.start() + last))
                pieces.append(_Piece("BREAK", match.start() + gap.start(), breaks=True))
                last = gap.end()
            pieces.append(_Piece(token[last:], match.start() + last))
    for first in round_:
        weigh(first, MORE)
    for first in square:
        weigh(first, LESS)
    for piece in pieces:
        if piece.breaks and piece.weight != 1:
            raise unreadable(text, piece.at, "a BREAK in brackets", expected="BREAK between them, as in (a) BREAK (b)")
    return _sections(pieces)


def _sections(pieces: list[_Piece]) -> tuple[Fragments, ...]:
    """Cut at every BREAK, and join neighbours of one weight."""
    sections: list[list[Fragment]] = [[]]
    for piece in pieces:
        if piece.breaks:
            sections.append([])
        elif sections[-1] and sections[-1][-1].weight == piece.weight:
            sections[-1][-1] = Fragment(sections[-1][-1].text + piece.text, piece.weight)
        else:
            sections[-1].append(Fragment(piece.text, piece.weight))
    return tuple(tuple(section) if section else (Fragment(""),) for section in sections)
