"""The command that writes a model repository of Triton."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "serving" / "triton.md"
MODELS = ["emoji64_text_encoder", "emoji64_vae_decoder", "ldmrt_emoji64"]


def test_the_command_of_the_page(ldmrt: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = re.findall(r"^    ldmrt (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "emoji64").symlink_to(bundle)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    ran = ldmrt(*words)
    assert (ran.code, ran.out.splitlines()) == (0, [f"out/models/{name}" for name in MODELS])
    again = ldmrt(*words)
    assert again.code == 2
    assert again.error == "error: repository: out/models has a model emoji64_text_encoder"
    assert ldmrt(*words, "--force", "--rows", "4", "--threads", "2").code == 0
    config = (tmp_path / "out/models/ldmrt_emoji64/config.pbtxt").read_text(encoding="utf-8")
    values = dict(re.findall(r'key: "(\w+)"\s+value {\s+string_value: "(.*)"', config))
    assert (values["rows"], values["threads"], values["waiting"]) == ("4", "2", "64")


def test_another_name(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    assert ldmrt("export-triton", f"pear={bundle}", tmp_path / "models").code == 0
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        *("ldmrt_pear", "pear_text_encoder", "pear_vae_decoder"),
    ]
