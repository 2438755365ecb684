"""Name the syntaxes, and read prompts by them."""

from .a1111.reading import Sections, read_a1111
from .compel.parser import read_compel
from .compel.tree import Conjunction
from .reading import Term

PLAIN, A1111, COMPEL = SYNTAXES = ("plain", "a1111", "compel")
Read = Sections | Conjunction
Terms = tuple[Term[Read], ...]


def read_prompt(syntax: str, prompt: str, steps: int, *, negative: bool = False) -> Terms:
    """Read a prompt by a syntax other than the plain one, which is not read.

    Args:
        syntax: "a1111" or "compel".
        prompt: The prompt.
        steps: The steps that its schedules are of.
        negative: Whether it is a negative prompt, in which AND is a word.

    Raises:
        InvalidRequest: The prompt cannot be read; the error points at the place.
    """
    if syntax == COMPEL:
        return (Term(1.0, ((steps, read_compel(prompt)),)),)
    return read_a1111(prompt, steps, composed=not negative)
