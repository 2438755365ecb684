"""Options of a Ray cluster: each mistake is one message, and nothing is made."""

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")


@pytest.mark.parametrize(
    "words", [("serve", "BUNDLE"), ("batch", "BUNDLE", "PROMPTS", "OUT")], ids=lambda words: words[0]
)
def test_options_of_commands(
    ldmrt: Any, bundle: Path, tmp_path: Path, monkeypatch: Any, words: tuple[str, ...]
) -> None:
    """Each mistake is one message, and nothing is made."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a pear\n")
    places = {"BUNDLE": bundle, "PROMPTS": prompts, "OUT": tmp_path / "out"}
    command = [str(places.get(word, word)) for word in words]
    assert "--replicas: it is an option of --ray" in ldmrt(*command, "--replicas", "2").error
    assert "--replicas: no number of replicas" in ldmrt(*command, "--ray", "--replicas", "x").error
    assert "--lora: the replicas of --ray load no LoRA" in ldmrt(*command, "--ray", "--lora", "oil.safetensors").error
    monkeypatch.setenv("RAY_ADDRESS", "nowhere:1:2")
    assert "--ray: no Ray cluster can be joined" in ldmrt(*command, "--ray").error
    for name in [name for name in sys.modules if name.startswith("ldmrt.serve.ray")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    missing = ldmrt(*command, "--ray")
    assert "Ray is not installed\n  try: pip install 'ldmrt[ray]'" in missing.err
    assert missing.code == 2
    assert list(tmp_path.iterdir()) == [prompts]
