"""The documentation site builds without a warning, and its references are complete."""

import io
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

import ldmrt.runtime
from ldmrt.tools.cli import cli

from ..conftest import sharing

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, export_once: Any) -> Path:
    """The folder of the built site."""
    pytest.importorskip("mkdocs_autorefs", reason="the docs extra is not installed")
    from mkdocs.__main__ import cli as mkdocs

    folder = tmp_path_factory.mktemp("site")
    with sharing(export_once), pytest.MonkeyPatch.context() as patched:  # in this process, for a page exports a model
        patched.chdir(ROOT)
        patched.setenv("NO_MKDOCS_2_WARNING", "1")
        ran = CliRunner().invoke(mkdocs, ["build", "--strict", "--site-dir", str(folder)])
    assert ran.exit_code == 0, ran.output
    assert "WARNING" not in ran.output
    return folder


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The hooks of the build, as a module."""
    pytest.importorskip("mkdocs", reason="the docs extra is not installed")
    monkeypatch.syspath_prepend(REFERENCE)
    monkeypatch.delitem(sys.modules, "site_hooks", raising=False)
    return __import__("site_hooks")


@pytest.mark.slow
def test_site_builds_with_warnings_as_errors(site: Path) -> None:
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")} - {"404.html"}
    sources = {path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in docs()}
    assert pages == sources | {
        "index.html",
        "contributing.html",
        "changelog.html",
        "shipped-model.html",
        "shipped-upscaler.html",
    }
    assert (site / "images/demo.png").stat().st_size > 1000


@pytest.mark.slow
def test_every_link_of_the_site_leads_to_a_file(site: Path) -> None:
    for page in site.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="?([^"#? >]+)', page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:|/", link):
                assert (page.parent / link).exists(), (page, link)


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="?https?://', page.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_references_on_the_site(site: Path) -> None:
    api = (site / "reference/api.html").read_text(encoding="utf-8")
    assert all(f'id="ldmrt.runtime.{name}"' in api for name in ldmrt.runtime.__all__)
    command_line = (site / "reference/cli.html").read_text(encoding="utf-8")
    assert "ldmrt train autoencoder" in command_line
    assert "--negative-clip-skip" in command_line


@pytest.mark.slow
def test_what_the_code_of_a_page_prints_is_on_the_site(site: Path) -> None:
    learn = (site / "training/learn.html").read_text(encoding="utf-8")
    assert "ELBO, exact posterior" in re.sub("<[^>]+>", "", learn.partition("log evidence          -")[2])
    images = sorted((site / "training").glob("learn-*.png"))
    assert [Image.open(path).size[0] > 300 for path in images] == [True] * 3
    assert all(f'src="{path.name}"' in learn for path in images)


@pytest.mark.slow(minutes=1)
def test_learn_page_holds_what_it_says_whatever_the_seed(
    hooks: ModuleType, monkeypatch: pytest.MonkeyPatch, shared_exports: None
) -> None:
    """Its asserts hold for other numbers than those that are shown, and every section checks something."""
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs/training/learn.md").read_text(encoding="utf-8")
    other = text.replace("manual_seed(0)", "manual_seed(7)").replace("default_rng(0)", "default_rng(7)")
    assert other.count("(7)") == 2
    shown, figures = hooks.run_blocks(other)
    assert len(figures) == 3
    assert "ONNX Runtime's image to PyTorch's:" in shown
    for section in text.split("\n## ")[1:]:
        assert "    assert " in section or "\nassert " in section, section.partition("\n")[0]


def test_blocks_run_in_order_in_one_namespace(hooks: ModuleType) -> None:
    first = "```python\nimport numpy as np\nx = 6 * 7\n```\n"
    then = "```python\nprint(x)\nfigure = np.zeros((2, 3, 3), np.uint8)\n```\n"
    shown, figures = hooks.run_blocks(f"a\n\n{first}\nb\n\n{then}\nc\n")
    printed = "```text\n42\n```\n\n![What the block above draws](learn-1.png)\n"
    assert shown == f"a\n\n{first}\nb\n\n{then}\n{printed}\nc\n"
    assert Image.open(io.BytesIO(figures["learn-1.png"])).size == (9, 6)


def test_claim_that_does_not_hold_stops_the_build_and_names_its_line(hooks: ModuleType) -> None:
    with pytest.raises(AssertionError) as raised:
        hooks.run_blocks("a\n\n```python\nx = 1\nassert x == 2\n```\n")
    assert raised.traceback[-1].lineno == 4  # from 0: the fifth line of the page


def docs() -> list[Path]:
    """Every page in docs."""
    return sorted((ROOT / "docs").rglob("*.md"))


def pages_of(entry: object) -> list[str]:
    """The pages of a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages_of(part)]


def test_navigation_has_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "\nstrict: true\n" in text
    listed = pages_of(yaml.safe_load(text)["nav"])
    sources = {page.relative_to(ROOT / "docs").as_posix() for page in docs()}
    assert sorted(listed) == sorted(sources | {"index.md", "contributing.md", "changelog.md"})


def test_api_page_has_every_public_name_once() -> None:
    names = re.findall(r"^::: ldmrt\.runtime\.(\w+)$", (REFERENCE / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(names) == sorted(ldmrt.runtime.__all__)


def test_command_line_page_has_every_command_and_option(hooks: ModuleType) -> None:
    assert hooks.COMMANDS in (REFERENCE / "cli.md").read_text(encoding="utf-8").splitlines()
    lines = list(hooks.reference())
    contexts = list(hooks.contexts(click.Context(cli, info_name="ldmrt")))
    assert len(contexts) > len(cli.list_commands(contexts[0]))  # with the commands of groups
    for context in contexts:
        start = next(i for i, line in enumerate(lines) if re.fullmatch(rf"##+ {context.command_path}", line))
        end = next((i for i in range(start + 1, len(lines)) if re.match("##+ ", lines[i])), len(lines))
        options = [param for param in context.command.params if isinstance(param, click.Option)]
        for option in options:
            names = [*option.opts, *option.secondary_opts]
            assert sum(all(name in line for name in names) for line in lines[start:end]) >= 1, option


def test_links_of_the_repository_become_links_of_the_site(hooks: ModuleType) -> None:
    assert hooks.site_path(hooks.target_of("docs/export.md", "index.md")) == "export.md"
    assert hooks.site_path(hooks.target_of("../CONTRIBUTING.md", "generate.md")) == "contributing.md"
    mine = "tests/tools/test_site.py"
    assert hooks.site_path(hooks.target_of(f"../{mine}", "export.md")) == f"files/{mine}"
    text = "[a](b.md) [c](https://d.e/f) [g](#h) [i](j.md#k) ![l](m.png)"
    assert hooks.LINK.findall(text) == ["b.md", "j.md", "m.png"]


def options_of(command: click.Command) -> set[str]:
    """The names of all options of a command and of those below it."""
    names = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help"}
    if isinstance(command, click.Group):
        context = click.Context(command)
        below = (command.get_command(context, name) for name in command.list_commands(context))
        names |= {option for part in below if part for option in options_of(part)}
    return names


@pytest.mark.parametrize("page", [ROOT / "README.md", *docs()], ids=lambda path: path.name)
def test_options_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    text = re.sub(
        r"^.*(python -m|pip install|optimum-cli|cp -rL|tools/\w+\.sh|docker |kubectl |tritonserver )(.*\\\n)*.*$"
        r"|`(pip|mkdocs|git|docker)[^`]*`",
        "",
        text,
        flags=re.MULTILINE,
    )
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9](?![\w-])", text))
    others = {"--exported", "--only", "--gpus", "--api-auth"}  # of a benchmark, of docker, and of the web UI
    assert named - options_of(cli) - others == set()
