"""Name the syntaxes, and read prompts by them."""

from typing import TYPE_CHECKING, TypeAlias

from .reading import Steps, Term

if TYPE_CHECKING:
    from .a1111.reading import Sections
    from .compel.tree import Conjunction

PLAIN, A1111, COMPEL = SYNTAXES = ("plain", "a1111", "compel")
Read: TypeAlias = "Sections | Conjunction"
Terms: TypeAlias = "tuple[Term[Read], ...]"


def read_prompt(syntax: str, prompt: str, steps: Steps, *, negative: bool = False) -> Terms:
    """Read a prompt by a syntax other than the plain one, which is not read.

    Args:
        syntax: "a1111" or "compel".
        prompt: The prompt.
        steps: The steps of the pass that it is read for.
        negative: Whether it is a negative prompt, in which AND is a word.

    Raises:
        InvalidRequest: The prompt cannot be read; the error points at the place.
    """
    # A parser is imported where it is asked for: its expressions take a while to compile.
    if syntax == COMPEL:
        from .compel.parser import read_compel

        return (Term(1.0, ((steps.count, read_compel(prompt)),)),)
    from .a1111.reading import read_a1111

    return read_a1111(prompt, steps, composed=not negative)
