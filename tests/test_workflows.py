"""Workflows run what the scripts run, on every supported Python, with actions pinned to commits."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def jobs_of(name: str) -> dict[str, Any]:
    """The jobs of a workflow."""
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))["jobs"]


def commands_of(job: dict[str, Any]) -> list[str]:
    """The commands that a job runs."""
    return [step["run"] for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_to_commits_and_say_their_version(workflow: Path) -> None:
    text = workflow.read_text(encoding="utf-8")
    uses = re.findall(r"^ +- uses: (.*)$", text, re.MULTILINE)
    assert len(uses) == text.count("uses:") > 0
    for line in uses:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", line), line


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_jobs_end_and_have_no_more_rights_than_they_need(workflow: Path) -> None:
    content = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    assert content["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] <= 180 for job in content["jobs"].values())


def test_every_supported_python_runs_what_ci_runs() -> None:
    job = jobs_of("test.yml")["test"]
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (lowest,) = re.findall(r'^requires-python = ">=(.*)"$', pyproject, re.MULTILINE)
    versions = job["strategy"]["matrix"]["python"]
    assert versions[0] == lowest
    assert versions == sorted(versions, key=lambda version: int(version.partition(".")[2]))
    assert ".ci/run" in commands_of(job)
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_ci_chains_a_training_to_an_image() -> None:
    run, chain = ((ROOT / ".ci" / name).read_text(encoding="utf-8") for name in ("run", "chain.sh"))
    assert "\nbash .ci/chain.sh\n" in run
    assert "\nset -eu\n" in chain  # the first command that fails ends it
    steps = re.findall(r"^ldmrt (train \w+|\w+)", chain, re.MULTILINE)
    assert steps == ["train autoencoder", "train ldm", "export", "verify", "generate"]


def test_documentation_is_built_as_make_docs_builds_it() -> None:
    commands = commands_of(jobs_of("test.yml")["docs"])
    (recipe,) = re.findall(r"^docs:.*\n\t(.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert "mkdocs build --strict" in commands
    assert "mkdocs build --strict" in recipe


def test_only_a_version_with_its_tag_is_published() -> None:
    text = (ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)[True] == {"push": {"tags": ["v*"]}}  # YAML reads the key `on` as true
    jobs = jobs_of("publish.yml")
    assert any("GITHUB_REF_NAME" in command for command in commands_of(jobs["build"]))
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
