"""Put the texts of a style around a prompt, from a file such as AUTOMATIC1111's styles.csv."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldmrt.runtime.errors import InvalidRequest, LdmrtError, first_line
from ldmrt.runtime.files.reading import plain_file
from ldmrt.runtime.nearest import suggestion

PROMPT = "{prompt}"  # where the user's own text goes in a style; one without it follows that text
NAME, TEXT, OLD_TEXT, NEGATIVE = "name", "prompt", "text", "negative_prompt"  # columns
COMMENT = "#"  # at the beginning of a name


@dataclass(frozen=True)
class Style:
    """What a style adds to a prompt and to a negative prompt."""

    prompt: str = ""
    negative_prompt: str = ""


def read_styles(path: Path) -> dict[str, Style]:
    """Read a file of styles, by their names, as `load_from_csv` of modules/styles.py of AUTOMATIC1111's web UI 1.10.

    The column of prompts may have its old name, and that of negative prompts may be missing, as in files of old.

    Raises:
        LdmrtError: It cannot be read, or lacks a column.
    """
    plain_file("--styles", path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, strict=True, skipinitialspace=True)
            rows = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LdmrtError("--styles", f"{path} is no file of styles", found=first_line(error)) from None
    columns = table.fieldnames or ()
    prompt = TEXT if TEXT in columns else OLD_TEXT
    if missing := [shown for name, shown in ((NAME, NAME), (prompt, TEXT)) if name not in columns]:
        problem, expected = f"the column {missing[0]} of styles is missing", f"{NAME}, {TEXT}, {NEGATIVE}"
        raise LdmrtError("--styles", problem, expected=expected, found=path)
    named = [row for row in rows if row[NAME] and not row[NAME].startswith(COMMENT)]
    return {row[NAME]: Style(row[prompt] or "", row.get(NEGATIVE) or "") for row in named}


def chosen(styles: Mapping[str, Style], names: Sequence[str]) -> list[Style]:
    """Return styles by their names, in the order of the names.

    Raises:
        LdmrtError: There is no such style; the nearest is suggested.
    """
    for name in names:
        if name not in styles:
            problem = f"no such style {name!r:.100}{suggestion(name, styles)}"
            raise LdmrtError("--style", problem, expected=", ".join(styles) or "a file with a style")
    return [styles[name] for name in names]


def styled(text: str, added: Sequence[str], longest: int | None = None) -> str:
    """Put the texts of styles around a text, one after another.

    Args:
        text: A prompt.
        added: The texts of styles, with `PROMPT` where the prompt goes, perhaps several times.
        longest: The most characters that the result may have.

    Raises:
        InvalidRequest: It is longer, before it is made.
    """
    for style in added:
        length = len(style) + (style.count(PROMPT) or 1) * len(text)
        if longest is not None and length > longest:
            problem, expected = "too many characters of a prompt with its styles", f"at most {longest}"
            raise InvalidRequest("request", problem, expected=expected, found=length)
        if PROMPT in style:
            text = style.replace(PROMPT, text)
        else:
            text = ", ".join(filter(None, (text.strip(), style.strip())))
    return text
