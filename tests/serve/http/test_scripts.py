"""The scripts of the page about serving run, against a server on the loopback."""

import re
from pathlib import Path

import pytest
from PIL import Image

from .conftest import Running

PAGE = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
SCRIPTS = dict(re.findall(r"^### ([^\n]*)\n(?:(?!^#).*?)```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("title", SCRIPTS)
def test_a_script(title: str, running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(SCRIPTS[title].replace("7860", running.url.rpartition(":")[2]).replace("emoji64", "tiny"), {})
    images = sorted(tmp_path.glob("*.png"))
    assert images
    for image in images:
        with Image.open(image) as opened:
            opened.load()


def test_every_api_has_a_script() -> None:
    assert list(SCRIPTS) == ["OpenAI's client", "AUTOMATIC1111's clients", "ldmrt's own"]
