"""The runtime needs NumPy alone, and works where torch, transformers and diffusers cannot be imported."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ldmrt.runtime

ROOM = Path(ldmrt.runtime.__file__).parent
SOURCE = sorted(ROOM.rglob("*.py"))
BLOCKED = ("torch", "transformers", "diffusers")
# What a file may import, each inside the function that needs it, or for type checkers alone.
MAY = {
    "images/animation.py": {"PIL", "av"},
    "images/inpainting.py": {"PIL"},
    "images/clip.py": {"PIL"},
    "images/exif.py": {"PIL"},
    "images/outpainting.py": {"PIL"},
    "images/reading.py": {"PIL"},
    "images/modes.py": {"PIL"},
    "images/png.py": {"PIL"},
    "images/sizes.py": {"PIL"},
    "images/writing.py": {"PIL"},
    "pipeline/autoencoder/upscale_model.py": {"PIL"},
    "pipeline/call.py": {"PIL"},
    "pipeline/request/checks.py": {"PIL"},
    "pipeline/request/images.py": {"PIL"},
    "backends/openvino/library.py": {"openvino"},
    "backends/ort/library.py": {"onnxruntime"},
    "backends/trt/cuda.py": {"cuda"},
    "files/hub.py": {"huggingface_hub"},
    "parity/metrics.py": {"skimage"},
    "tokenizer/gemma.py": {"tokenizers"},
    "tokenizer/qwen2.py": {"tokenizers"},
    "tokenizer/tokenizer.py": {"tokenizers"},
    "tokenizer/unigram.py": {"tokenizers"},
    "tokenizer/wordpiece.py": {"tokenizers"},
}


def python(program: str, *arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", program, *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_import_loads_numpy_alone() -> None:
    program = "import sys, json; from ldmrt.runtime import *; print(json.dumps([*sys.modules]))"
    ran = python(program)
    assert ran.returncode == 0, ran.stderr
    loaded = {name.partition(".")[0] for name in json.loads(ran.stdout)}
    assert {"ldmrt", "numpy"} <= loaded
    assert not loaded & {
        "onnxruntime",
        "openvino",
        "PIL",
        "tokenizers",
        "rich",
        "click",
        "onnx",
        "tensorrt",
        "cuda",
        "huggingface_hub",
        *BLOCKED,
    }


def imports(tree: ast.AST) -> list[tuple[str, ast.stmt]]:
    """The modules that a file imports, as top-level names; those of its own room as "."."""
    found: list[tuple[str, ast.stmt]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            own = node.level == 1 or f"{node.module}.".startswith("ldmrt.runtime.")
            found.append(("." if own else node.module or "..", node))
    return [(name if name == "." else name.partition(".")[0], node) for name, node in found]


@pytest.mark.parametrize("path", SOURCE, ids=lambda path: path.relative_to(ROOM).as_posix())
def test_source_imports_only_what_it_may(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    everywhere = sys.stdlib_module_names | {"numpy", ".", "_typeshed"}  # the last exists for type checkers alone
    assert {name for name, _ in imports(tree)} - everywhere <= MAY.get(path.relative_to(ROOM).as_posix(), set())
    inside = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) or _for_type_checkers(f) for n in ast.walk(f)}
    assert [name for name, node in imports(tree) if name not in everywhere and node not in inside] == []


def _for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def test_every_source_file_was_looked_at() -> None:
    assert {"__init__.py", "pipeline/pipeline.py", *MAY} <= {path.relative_to(ROOM).as_posix() for path in SOURCE}


SUITE = """
import sys
sys.modules.update(dict.fromkeys({blocked!r}))  # importing one is now an ImportError
import pytest


class OneCase:
    # the others import nothing else

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        items[:] = {{item.nodeid.partition("[")[0]: item for item in reversed(items)}}.values()


options = ["-q", "-n", "0", "-p", "no:cacheprovider", "-m", "not oracle and not slow"]
code = pytest.main([*options, *sys.argv[1:]], plugins=[OneCase()])
loaded = sorted(name for name in {blocked!r} if sys.modules[name] is not None)
sys.exit(f"loaded after all: {{loaded}}" if loaded else code)
"""


@pytest.mark.slow(minutes=6)
def test_suite_passes_without_torch(bundle: Path) -> None:
    """One case of every other test of this folder, but for those that compare with torch's world."""
    here = Path(__file__)
    ran = python(
        SUITE.format(blocked=BLOCKED), here.parent, f"--ignore={here}",
        f"--rootdir={here.parents[2]}", LDMRT_TEST_BUNDLE=str(bundle),
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (\w+)", ran.stdout.splitlines()[-1])}
    assert counts["passed"] > 200
    assert counts["deselected"] > 20  # the oracles, and nothing was skipped in their place
    assert "skipped" not in counts


def test_blocking_blocks() -> None:
    ran = python(f"import sys; sys.modules.update(dict.fromkeys({BLOCKED!r})); import torch")
    assert "ModuleNotFoundError" in ran.stderr
