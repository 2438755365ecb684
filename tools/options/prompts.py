"""Options that change the texts of prompts before they are read: styles and wildcards."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from .drawing import Decorator
from .images import IMAGES

WORDING: tuple[Decorator, ...] = (
    click.option("--styles", type=click.Path(path_type=Path), help="File of styles, as AUTOMATIC1111's styles.csv."),
    click.option("--style", multiple=True, help="Style of that file to put around the prompt; several in their order."),
    click.option(
        "--wildcards",
        type=click.Path(path_type=Path),
        help="Folder of text files: __NAME__ in a prompt is a line of NAME.txt, chosen by the image's seed.",
    ),
)


def worded(
    values: Mapping[str, Any], styles: Path | None, style: Sequence[str], wildcards: Path | None
) -> dict[str, Any]:
    """Return the values of a request with styles around its prompts, and a prompt for each image with wildcards.

    Args:
        values: The values by their short words; `prompt` is a sequence of texts or None.
        styles: The file of styles.
        style: The names of those to use.
        wildcards: The folder of wildcards.

    Raises:
        LdmrtError: A file cannot be read, or lacks what is named.
    """
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.runtime.pipeline.prompts.styles import chosen, read_styles, styled
    from ldmrt.runtime.pipeline.prompts.wildcards import Wildcards

    if bool(styles) != bool(style):
        given, other = ("--styles", "--style NAME") if styles else ("--style", "--styles FILE")
        raise LdmrtError("styles", f"{given} without {other.split()[0]}", expected=other)
    prompts, negative = list(values["prompt"] or ("",)), values["negative_prompt"]
    if styles is not None:
        added = chosen(read_styles(styles), style)
        prompts = [styled(text, [one.prompt for one in added]) for text in prompts]
        negative = styled(negative or "", [one.negative_prompt for one in added]) or None
    changed = dict(values) | ({"prompt": prompts, "negative_prompt": negative} if styles is not None else {})
    if wildcards is None:
        return changed
    folder = Wildcards(wildcards)
    seeds = range(values["seed"], values["seed"] + len(prompts) * values["count"])
    each = [text for text in prompts for _ in range(values["count"])]
    changed |= {"prompt": [folder.expanded(text, seed) for text, seed in zip(each, seeds, strict=True)], "count": 1}
    for name in (*IMAGES, "class_labels"):  # one for each prompt, which are several now
        changed[name] = _repeated(values.get(name), len(prompts), values["count"])
    changed["controls"] = {
        name: (_repeated(images, len(prompts), values["count"]), scale)
        for name, (images, scale) in (values.get("controls") or {}).items()
    }
    if negative:
        changed["negative_prompt"] = [folder.expanded(negative, seed) for seed in seeds]
    return changed


def _repeated(value: Any, prompts: int, count: int) -> Any:
    """Repeat each item of a list that has one for each prompt; return any other value as it is."""
    if isinstance(value, list) and len(value) == prompts > 1:
        return [item for item in value for _ in range(count)]
    return value
