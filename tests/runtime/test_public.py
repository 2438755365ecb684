"""What `ldmrt.runtime` gives: every public name, imported when it is asked for."""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ldmrt.runtime

TREE = ast.parse(Path(ldmrt.runtime.__file__).read_text(encoding="utf-8"))
# What a type checker sees, in the module itself and in its block for type checkers.
SHOWN = [alias.asname or alias.name for node in ast.walk(TREE) if isinstance(node, ast.ImportFrom) if node.level
         for alias in node.names]  # fmt: skip
LOADED = """
import json, sys
import ldmrt.runtime
{line}
print(json.dumps(sorted(sys.modules)))
"""


def loaded(line: str) -> set[str]:
    ran = subprocess.run([sys.executable, "-c", LOADED.format(line=line)], capture_output=True, text=True, check=True)
    return set(json.loads(ran.stdout))


def test_public_names_are_all_and_sorted() -> None:
    assert sorted(ldmrt.runtime.__all__) == sorted(SHOWN)
    assert ldmrt.runtime.__all__ == sorted(ldmrt.runtime.__all__, key=lambda name: (not name.isupper(), name))
    assert set(ldmrt.runtime.__all__) <= set(dir(ldmrt.runtime))


@pytest.mark.parametrize("node", [node for node in ast.walk(TREE) if isinstance(node, ast.ImportFrom) if node.level],
                         ids=lambda node: node.module)  # fmt: skip
def test_a_name_is_what_type_checkers_see(node: ast.ImportFrom) -> None:
    module: Any = __import__(f"ldmrt.runtime.{node.module}", fromlist=["*"])
    for alias in node.names:
        assert getattr(ldmrt.runtime, alias.asname or alias.name) is getattr(module, alias.name)


def test_star_gives_every_public_name() -> None:
    names: dict[str, Any] = {}
    exec("from ldmrt.runtime import *", names)
    assert set(ldmrt.runtime.__all__) <= set(names)
    assert inspect.signature(names["open"]) == inspect.signature(ldmrt.runtime.open)


@pytest.mark.parametrize("line", [
    "from ldmrt.runtime import LdmrtError, LdmrtWarning",
    "import pickle; pickle.loads(pickle.dumps(ldmrt.runtime.LdmrtError('unet', 'wrong', hint='again')))",
    "from ldmrt.runtime import BundleError, EngineNotFound, InvalidRequest, NotFinite",
    "hasattr(ldmrt.runtime, '__warningregistry__'), dir(ldmrt.runtime)",  # as the standard library asks any module
])  # fmt: skip
def test_errors_load_no_numpy(line: str) -> None:
    assert not {name for name in loaded(line) if name.partition(".")[0] == "numpy"}


def test_another_name_is_refused() -> None:
    with pytest.raises(AttributeError, match=r"module 'ldmrt\.runtime' has no attribute 'Piepline'"):
        _ = ldmrt.runtime.Piepline  # type: ignore[attr-defined]
