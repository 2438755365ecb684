"""Names of the house are words of the field: those that they replaced do not come back.

docs/glossary.md has one word for each thing.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Replaced by CheckpointOptions, LowMemory, CachedTextEncoder, StepCapacity, Workspace, ImageSimilarity and so on.
GONE = set(
    "Reading of_checkpoint Turns Visitor Memo Stamped mend lacking doubts gather Checked Figure Drift Likeness Cost"
    " LeftOut Listening WIDE wide climb ranging widen settle lower Registers lay_out Move Wires Folded fold Room Walk"
    " Reference Start Begun Sampled Task Nodes keep_needed facts zeros scored".split()
)
NOT_IN_NAMES = ("picture", "impossible", "said", "told")
# Keys of certificates and recordings, which stand in bundles that people have; and a training sample's own field.
STORED = {"pictures", "said", "picture"}


def public_names(path: Path) -> Iterator[str]:
    """Functions, classes and constants of a file, and methods and fields of its classes, without those that begin
    with an underscore."""
    bodies = [ast.parse(path.read_text(encoding="utf-8")).body]
    bodies += [node.body for node in bodies[0] if isinstance(node, ast.ClassDef)]
    for node in (node for body in bodies for node in body):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        else:
            continue
        yield from (name for name in names if not name.startswith("_"))


PACKAGES = ("runtime", "model", "export", "serve", "tools")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("package", PACKAGES)
def test_replaced_names_do_not_come_back(package: str) -> None:
    names = {name: path for path in FILES if (ROOT / package) in path.parents for name in public_names(path)}
    assert {name: path for name, path in names.items() if name in GONE} == {}
    worded = {name for name in names if any(word in name.lower() for word in NOT_IN_NAMES)}
    assert worded <= STORED


@pytest.mark.slow(minutes=0.05)
def test_names_were_read() -> None:
    """The reader of names finds functions, classes, constants, methods and fields."""
    names = {name for path in FILES for name in public_names(path)}
    assert {"open_pipeline", "Bundle", "SCHEDULERS", "certificate_issues", "trajectory"} <= names
