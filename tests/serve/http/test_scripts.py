"""The scripts of the page about serving run, against a server on the loopback, and so does its command."""

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from PIL import Image

from ...support.fakes.small_loras import small_lora
from .conftest import Running

PAGE = (Path(__file__).parents[3] / "docs" / "serving" / "serving.md").read_text(encoding="utf-8")
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


COMMANDS = re.findall(r"^    (ldmrt serve .*)$", PAGE, re.MULTILINE)


@pytest.mark.slow(minutes=0.08)
@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_serves_until_it_is_stopped(command: str, bundle: Path, tmp_path: Path) -> None:
    small_lora(tmp_path / "style.safetensors", 1)
    words = shlex.split(command.replace("out/emoji64", f"emoji64={bundle}").replace("--port 7860", ""))[1:]
    told, how = [sys.executable, "-um", "ldmrt", *words, "--port", "0"], {"cwd": tmp_path, "text": True}
    with subprocess.Popen(told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **how) as server:  # type: ignore[call-overload]
        assert server.stdout is not None
        url = next((line.strip() for line in server.stdout if line.startswith("http://127.0.0.1:")), None)
        assert url
        assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}
        assert [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]] == ["emoji64"]
        loras = [lora["name"] for lora in httpx.get(f"{url}/sdapi/v1/loras").json()]
        assert loras == (["style"] if "--lora" in words else [])
        server.send_signal(signal.SIGTERM)
        rest = server.communicate(timeout=60)[0]
    assert "Traceback" not in rest
