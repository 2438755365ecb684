"""Hooks of mkdocs: add the pages that stand outside docs, the files that pages link to, and the help of commands."""

import contextlib
import io
import posixpath
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from PIL import Image

from ldmrt.tools.cli import cli

ROOT = Path(__file__).parents[2]
# Markdown files of the repository outside docs -> pages of the site
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "model/pretrained/emoji64/README.md": "shipped-model.md",
    "model/pretrained/emoji128-upscaler/README.md": "shipped-upscaler.md",
}
LINK = re.compile(r"(?<=\]\()(?![a-z+]+:|#)([^)#\s]+)")  # relative ones, without the anchor
BLOCK = re.compile(r"```python\n(.*?)```\n", re.DOTALL)
RUN = "training/learn.md"  # the page whose code runs when it is built
COMMANDS = "<!-- commands -->"  # the line of cli.md that the reference replaces


def on_startup(**_: object) -> None:
    """Gather the folders of the package under its name: mkdocstrings follows no editable installation."""
    package = ROOT / "build/site_sources/ldmrt"
    package.mkdir(parents=True, exist_ok=True)
    folders = ("model", "export", "runtime", "serve", "tools")
    for source in (*(ROOT / "about").glob("*.py"), *(ROOT / name for name in folders)):
        link = package / source.name
        link.unlink(missing_ok=True)
        link.symlink_to(source)


def in_repository(page: str) -> str:
    """Return the path in the repository of a page's source."""
    return next((path for path, name in OUTSIDE.items() if name == page), f"docs/{page}")


def site_path(path: str) -> str:
    """Return the path on the site of a file of the repository: a page, an image, or a copy below files/."""
    return OUTSIDE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}")


def target_of(link: str, page: str) -> str:
    """Return the path in the repository that a page's link leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(in_repository(page)), link))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand outside docs, and every file that a page links to."""
    for path, name in OUTSIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    for page in list(files.documentation_pages()):
        for link in LINK.findall(page.content_string):
            path = target_of(link, page.src_uri)
            name = site_path(path)
            if name.startswith("files/") and files.get_file_from_path(name) is None and (ROOT / path).is_file():
                files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between files of the site, and fill the reference in."""
    source = page.file.src_uri
    here = posixpath.dirname(source)
    markdown = LINK.sub(lambda m: posixpath.relpath(site_path(target_of(m[1], source)), here or "."), markdown)
    if source == RUN:
        markdown, figures = run_blocks(markdown)
        for name, content in figures.items():
            files.append(File.generated(config, posixpath.join(here, name), content=content))
    return markdown.replace(COMMANDS, "\n".join(reference())) if source.endswith("cli.md") else markdown


def run_blocks(markdown: str) -> tuple[str, dict[str, bytes]]:
    """Run a page's blocks of Python in their order and in one namespace, in the current folder, the repository's.

    Returns:
        The page, with what each block prints below it, and the image that it leaves as `figure`, (H, W, 3), uint8,
        three times as large; and the images as PNG, by their names.

    Raises:
        AssertionError: What the page claims does not hold.
    """
    names, figures = dict[str, object](), dict[str, bytes]()

    def run(block: re.Match[str]) -> str:
        printed, shown = io.StringIO(), block[0]
        line = markdown.count("\n", 0, block.start(1))  # so that a traceback names the line of the page
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile("\n" * line + block[1], RUN, "exec"), names)
        if text := printed.getvalue():
            shown += f"\n```text\n{text}```\n"
        if (pixels := names.pop("figure", None)) is not None:
            image, content, name = Image.fromarray(pixels), io.BytesIO(), f"learn-{len(figures) + 1}.png"
            image.resize((3 * image.width, 3 * image.height), Image.Resampling.NEAREST).save(content, "PNG")
            figures[name] = content.getvalue()
            shown += f"\n![What the block above draws]({name})\n"
        return shown

    return BLOCK.sub(run, markdown), figures


def reference() -> Iterator[str]:
    """Yield the lines of the command line's reference: every command with its help, usage and options."""
    for context in contexts(click.Context(cli, info_name="ldmrt", max_content_width=120, terminal_width=120)):
        command, path = context.command, context.command_path
        yield from ("", f"{'###' if path.count(' ') > 1 else '##'} {path}", "")
        yield from (f"    {path} {' '.join(command.collect_usage_pieces(context))}", "", help_of(command))
        records = [param.get_help_record(context) for param in command.params if isinstance(param, click.Option)]
        if records:
            yield from ("", "| option | meaning |", "|---|---|")
        yield from (f"| `{record[0]}` | {cell(record[1])} |" for record in records if record)


def contexts(context: click.Context) -> Iterator[click.Context]:
    """Yield the contexts of all commands below one, groups before their commands."""
    if not isinstance(context.command, click.Group):
        return
    for name in context.command.list_commands(context):
        if command := context.command.get_command(context, name):
            below = click.Context(command, parent=context, info_name=name)
            yield below
            yield from contexts(below)


def help_of(command: click.Command) -> str:
    """Return a command's help as Markdown: an example becomes a block of code."""
    text = re.sub(r"([<>*_])", r"\\\1", command.help or "")
    return re.sub(r"^Example: (.*(?:\n.+)*)", lambda m: f"    {' '.join(m[1].split())}", text, flags=re.MULTILINE)


def cell(text: str) -> str:
    """Return a text as it stands in a cell of a table."""
    return re.sub(r"([|<*_])", r"\\\1", " ".join(text.split()))
