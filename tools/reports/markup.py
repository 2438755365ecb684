"""Write HTML and SVG in which all text is escaped that is not markup already."""

from collections.abc import Iterable
from html import escape

Inside = str | Iterable[str]
VOID = {"img", "input"}


class Markup(str):
    """Text that `tag` has made, which is not escaped again."""


def tag(name: str, *inside: Inside, **attributes: object) -> Markup:
    """Write an element; the text inside and the attributes are escaped.

    Args:
        name: Name of the element.
        inside: Texts or markup, alone or in iterables.
        attributes: `class_` is written as class and `aria_label` as aria-label; an attribute that is None is skipped.
    """
    parts = [part for item in inside for part in ([item] if isinstance(item, str) else item)]
    text = "".join(part if isinstance(part, Markup) else escape(part) for part in parts)
    named = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    start = "".join([name, *(f' {key}="{escape(str(value))}"' for key, value in named.items())])
    return Markup(f"<{start}>" if name in VOID else f"<{start}>{text}</{name}>")
