"""Choose the protocol in which a terminal shows images, by its environment variables."""

import sys
from collections.abc import Mapping
from typing import TextIO

AUTO = "auto"
KITTY, ITERM2, SIXEL, BLOCKS = PROTOCOLS = ("kitty", "iterm2", "sixel", "blocks")
# By TERM_PROGRAM and by how TERM begins. Others that know a protocol do not say so in the environment.
PROGRAMS = {"iTerm.app": ITERM2, "WezTerm": ITERM2, "ghostty": KITTY, "contour": SIXEL}
TERMS = {"xterm-kitty": KITTY, "xterm-ghostty": KITTY, "foot": SIXEL, "mlterm": SIXEL, "yaft": SIXEL, "contour": SIXEL}
MULTIPLEXERS = ("screen", "tmux")  # which pass no images on unless they are told to
HALF = "\u2580"  # the upper half of a cell


def protocol_of(stream: TextIO, environment: Mapping[str, str], wanted: str = AUTO) -> str | None:
    """Return the protocol that a stream is written images in.

    Args:
        stream: Where images would be written.
        environment: The environment variables.
        wanted: One of `PROTOCOLS`, or `AUTO` for the one that the terminal is known to have, and else `BLOCKS`.

    Returns:
        One of `PROTOCOLS`; None where the stream is no terminal, or one that cannot show an image.
    """
    term = environment.get("TERM", "")
    if not stream.isatty() or (term in ("", "dumb") and sys.platform != "win32"):
        return None
    found = _known(environment, term) if wanted == AUTO else wanted
    return None if found == BLOCKS and not _encodes(stream) else found


def truecolor(environment: Mapping[str, str]) -> bool:
    """Tell whether a terminal says that it shows all colours, and not 256 alone."""
    known = environment.get("COLORTERM", "").lower() in ("truecolor", "24bit") or "WT_SESSION" in environment
    return known or environment.get("TERM", "").endswith("-direct")


def _known(environment: Mapping[str, str], term: str) -> str:
    """Return the protocol that a terminal is known to have; blocks of any other."""
    if "TMUX" in environment or term.startswith(MULTIPLEXERS):
        return BLOCKS
    by_term = next((kind for name, kind in TERMS.items() if term.startswith(name)), None)
    program = environment.get("TERM_PROGRAM") or environment.get("LC_TERMINAL", "").replace("iTerm2", "iTerm.app")
    own = KITTY if "KITTY_WINDOW_ID" in environment else None
    return by_term or PROGRAMS.get(program) or own or BLOCKS


def _encodes(stream: TextIO) -> bool:
    """Tell whether a stream's encoding has half blocks."""
    try:
        HALF.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
