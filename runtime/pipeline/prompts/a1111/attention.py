r"""Read the weights of a text: (more), [less], (exactly:1.3), the escapes \( \) \[ \] \\, and BREAK."""

import re

from ldmrt.runtime.pipeline.prompts.fragments import Fragment, Fragments, weight_of

MORE, LESS = 1.1, 1 / 1.1  # of each round, and of each square bracket
TOKEN = re.compile(r"\\[()\[\]\\]|\\|\(|\[|:\s*([+-]?[.\d]+)\s*\)|\)|]|[^\\()\[\]:]+|:")
BREAK = re.compile(r"\bBREAK\b\s*")
WORD, BREAKS = "BREAK", -1.0  # a BREAK while weights are read: its text and its weight


class _Piece:
    """A piece of the text while its weight is not final."""

    def __init__(self, text: str, weight: float = 1.0) -> None:
        self.text, self.weight = text, weight


def read_attention(text: str) -> tuple[Fragments, ...]:
    """Read a text as sections of fragments; between two sections stands a BREAK.

    A bracket that is never closed counts up to the end of the text, one that was never opened is a character. A BREAK
    has the weight -1, which brackets around it change as they do others: in AUTOMATIC1111's program it is then a word
    of that weight, and begins no section.

    Args:
        text: The text, without schedules.

    Returns:
        At least one section with at least one fragment; neighbours of one weight are joined.

    Raises:
        InvalidRequest: A weight is no number.
    """
    pieces = list[_Piece]()
    round_, square = list[int](), list[int]()

    def weigh(first: int, weight: float) -> None:
        for piece in pieces[first:]:
            piece.weight *= weight

    for match in TOKEN.finditer(text):
        token, weight = match[0], match[1]
        if token.startswith("\\"):
            pieces.append(_Piece(token[1:]))
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
                pieces += [_Piece(token[last : gap.start()].rstrip()), _Piece(WORD, BREAKS)]
                last = gap.end()
            pieces.append(_Piece(token[last:]))
    for first in round_:
        weigh(first, MORE)
    for first in square:
        weigh(first, LESS)
    return _sections(pieces)


def _sections(pieces: list[_Piece]) -> tuple[Fragments, ...]:
    """Join neighbours of one weight, and cut at every BREAK."""
    joined: list[Fragment] = []
    for piece in pieces:
        if joined and joined[-1].weight == piece.weight:
            joined[-1] = Fragment(joined[-1].text + piece.text, piece.weight)
        else:
            joined.append(Fragment(piece.text, piece.weight))
    sections: list[list[Fragment]] = [[]]
    for fragment in joined:
        if fragment == Fragment(WORD, BREAKS):
            sections.append([])
        else:
            sections[-1].append(fragment)
    return tuple(tuple(section) if section else (Fragment(""),) for section in sections)
