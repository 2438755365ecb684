"""HTML and SVG in which everything is escaped that is not markup already."""

from collections.abc import Iterable
from html import escape

Inside = str | Iterable[str]
VOID = {"img", "input"}


class Markup(str):
    """Holds text that `tag` made."""


def tag(name: str, *inside: Inside, **attributes: object) -> Markup:
    """Write an element. Text inside and attributes are escaped; `class_` is class, `aria_label` is aria-label, and an
    attribute that is None is left out.
    """
    parts = [one for some in inside for one in ([some] if isinstance(some, str) else some)]
    text = "".join(one if isinstance(one, Markup) else escape(one) for one in parts)
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    start = "".join([name, *(f' {key}="{escape(str(value))}"' for key, value in given.items())])
    return Markup(f"<{start}>" if name in VOID else f"<{start}>{text}</{name}>")
