"""What every card has to be: read back by the hub's own reader, and by the command line that it prints."""

import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

import click
from PIL import Image

from ldmrt.tools.commands.training.train import train
from ldmrt.tools.console.training.recipe import read_recipe, recipe_of
from ldmrt.tools.console.training.records.card import shown


def card_of(out: Path) -> str:
    """The card of a run without its stamp."""
    return (out / "README.md").read_text().rpartition("\n<!--")[0]


def blocks(text: str) -> list[str]:
    """The commands that it prints."""
    return re.findall(r"^```bash\n(.*?)\n```$", text, re.DOTALL | re.MULTILINE)


def words_of(command: str) -> list[str]:
    """The words of a command; shlex leaves the ends of lines in that a shell joins."""
    return shlex.split(command.replace("\\\n", ""))


def check_card(out: Path, task: str, *, library: str | None = "diffusers", base: str | None = None) -> dict[str, Any]:
    """Check the card of a run; return its metadata."""
    from huggingface_hub import ModelCard

    text = card_of(out)
    data: dict[str, Any] = ModelCard(text).data.to_dict()
    assert (data.get("library_name"), data.get("base_model")) == (library, base)
    assert ModelCard(text).text.lstrip().startswith(f"# {out.name}\n")
    assert task in data["tags"]
    assert not [place for place in (tempfile.gettempdir(), Path.cwd(), Path.home()) if f"{place}/" in text]
    for name in re.findall(r"!\[.*?\]\((.*?)\)", text):
        with Image.open(out / name) as image:
            image.load()
    assert "training/loss.png" in text
    short, full = map(words_of, blocks(text))
    assert short == ["ldmrt", "train", f"{out.name}/recipe.toml", "--out", f"{out.name}-again"]
    context = click.Context(train)
    name, command, words = train.resolve_command(context, full[2:])
    assert (full[:2], name) == (["ldmrt", "train"], task)
    assert command is not None
    again = recipe_of(command, command.make_context(name, words, parent=context).params)
    (written := out.parent / f"{out.name}.toml").write_text(again)
    assert read_recipe(written) == {key: _relative(value) for key, value in read_recipe(out / "recipe.toml").items()}
    return data


def _relative(value: Any) -> Any:
    return shown(value) if isinstance(value, str) else value
