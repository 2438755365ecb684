"""The rules of the house: a room imports only the rooms below it, and no folder or file grows too large to read.

A room is a folder of `runtime`, `model`, `export`, `serve` or `tools` with all that is in it, or one of the files
beside them.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import ldmrt.runtime

ROOT = Path(__file__).parents[1]
PACKAGES = ("runtime", "model", "export", "serve", "tools")
MOST_ENTRIES, MOST_LINES = 14, 320

ERRORS = {"runtime.errors"}
GROUND = ERRORS | {f"runtime.{name}" for name in ("files", "host", "nearest", "optional", "tensors")}
RUNTIME = GROUND | {f"runtime.{name}" for name in ("backends", "bundle", "images", "pipeline", "samplers", "tokenizer")}
READING = GROUND | {"runtime.samplers", "runtime.tokenizer"}
MODEL = {
    f"model.{name}" for name in ("config", "families", "library", "networks", "weights", "checkpoint", "torch_engine")
}
EXPORT = {
    f"export.{name}"
    for name in ("components", "graph", "parity", "precision", "bundle_writer", "cascade", "engines", "upscale_model")
}
CONSOLE = {"tools.console", "tools.options"}
# Which rooms a room may import. There is no list of exceptions.
MAY: dict[str, set[str]] = {
    "runtime": ERRORS | {f"runtime.{name}" for name in ("backends", "bundle", "pipeline", "samplers", "tensors")},
    "runtime.errors": set(),
    "runtime.nearest": ERRORS,
    "runtime.host": set(),
    "runtime.optional": ERRORS,
    "runtime.tensors": ERRORS,
    "runtime.files": ERRORS | {"runtime.optional", "runtime.tensors"},
    "runtime.images": GROUND,
    "runtime.tokenizer": GROUND,
    "runtime.samplers": GROUND,
    "runtime.bundle": GROUND,
    "runtime.backends": GROUND | {"runtime.bundle"},
    "runtime.pipeline": RUNTIME,
    "runtime.parity": RUNTIME,
    "model": MODEL | {"model.vision"},
    "model.torch_engine": GROUND,
    "model.config": ERRORS,
    "model.networks": ERRORS | {"model.config"},
    "model.weights": GROUND,
    "model.families": ERRORS | {"runtime.bundle", "runtime.files"},  # stages are values
    "model.library": GROUND | {"runtime.bundle", "model.config", "model.weights"},
    "model.checkpoint": READING
    | {"runtime.bundle", "model.config", "model.families", "model.library", "model.networks", "model.weights"},
    "model.textual_inversion": READING | {"model.networks", "model.weights"},
    "model.lora": READING
    | {"runtime.bundle", "model.checkpoint", "model.networks", "model.textual_inversion", "model.weights"},
    "model.vision": READING
    | {"runtime.bundle", "runtime.images"}
    | {f"model.{name}" for name in ("checkpoint", "config", "library", "networks", "weights")},
    "model.scores": ERRORS,
    "model.training": READING
    | {"runtime.bundle", "runtime.images"}
    | {f"model.{name}" for name in ("checkpoint", "families", "lora", "networks", "weights")},
    "export": set(),
    "export.dims": {"runtime.bundle"},
    "export.components": RUNTIME | MODEL,
    "export.graph": GROUND | {"runtime.bundle", "model.weights", "export.components", "export.dims"},
    "export.parity": RUNTIME
    | {"runtime.parity", "model.checkpoint", "model.weights", "export.components", "export.graph"},
    "export.precision": RUNTIME
    | {"runtime.parity", "model.checkpoint", "model.weights", "export.components", "export.graph", "export.parity"},
    "export.engines": GROUND | {"runtime.bundle", "runtime.backends", "export.dims"},  # without torch
    "export.bundle_writer": RUNTIME
    | {"model.checkpoint", "export.components", "export.engines", "export.graph", "export.precision"},
    "export.cascade": RUNTIME,
    "export.upscale_model": RUNTIME
    | {
        "model.checkpoint",
        "model.vision",
        "export.bundle_writer",
        "export.components",
        "export.graph",
        "export.parity",
    },
    "serve": set(),
    "serve.batch": RUNTIME | {"serve.batching", "serve.jobs", "serve.models"},
    "serve.batching": RUNTIME,
    "serve.jobs": RUNTIME | {"serve.batching", "serve.models"},
    "serve.models": RUNTIME | {"serve.batching"},
    "serve.ray": RUNTIME | {f"serve.{name}" for name in ("batch", "batching", "http", "jobs", "models")},
    "serve.page": RUNTIME | {"serve.models"},
    "serve.triton": RUNTIME | {"serve.batching", "serve.jobs", "serve.models"},
    "serve.http": RUNTIME | {"serve.batching", "serve.jobs", "serve.page"},
    "tools": set(),
    "tools.cli": ERRORS | CONSOLE,
    "tools.emoji": GROUND | {"runtime.images", "model.training"},
    "tools.reports": GROUND | {"runtime.bundle", "runtime.parity", "runtime.samplers"},
    "tools.options": RUNTIME
    | {"model.checkpoint", "model.vision", "model.lora"}
    | {"model.textual_inversion", "export.engines"},
    "tools.console": RUNTIME
    | MODEL
    | EXPORT
    | {"runtime.parity", "model.training", "model.vision", "serve.batch", "tools.emoji", "tools.options"},
    "tools.commands": RUNTIME
    | MODEL
    | EXPORT
    | CONSOLE
    | {f"serve.{name}" for name in ("batch", "http", "jobs", "models", "ray", "triton")}
    | {"runtime.parity", "model.lora", "model.scores", "model.training", "tools.emoji", "tools.reports"},
    "tools.benchmarks": RUNTIME
    | MODEL
    | EXPORT
    | CONSOLE
    | {"runtime.parity", "model.training", "serve.jobs", "serve.models"},
}


def module_of(path: Path) -> str:
    """The dotted name of a file without `ldmrt`, such as runtime.bundle.graphs."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


FILES = {module_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def room_of(module: str) -> str:
    """The first two parts of a module's name."""
    return ".".join(module.split(".")[:2])


def imports_of(module: str) -> Iterator[str]:
    """The modules of the house that one imports, also inside functions and under TYPE_CHECKING."""
    inside = FILES[module].name == "__init__.py"
    package = module.split(".") if inside else module.split(".")[:-1]
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else []
            named = (node.module or "").removeprefix("ldmrt.") if not node.level else node.module or ""
            if not node.level and named == node.module:
                continue
            base = ".".join([*parent, *filter(None, [named])])
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in FILES else base
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("ldmrt.") for a in node.names if a.name.startswith("ldmrt."))


@cache
def imports() -> dict[str, list[str]]:
    """The modules of the house that each one imports, read when a test first needs them."""
    return {module: sorted(set(imports_of(module)) & FILES.keys()) for module in FILES}


@pytest.mark.parametrize("room", MAY)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    found = [(a, b) for a, others in imports().items() for b in others if room_of(a) == room != room_of(b)]
    assert [pair for pair in found if room_of(pair[1]) not in MAY[room]] == []


def test_every_room_has_its_rule_and_every_rule_a_room() -> None:
    assert {room_of(module) for module in FILES} == MAY.keys()


def test_the_rules_name_no_room_that_is_gone() -> None:
    """Sets that several rooms share may hold more than one of them uses."""
    assert set().union(*MAY.values()) <= MAY.keys()


def test_no_circle_among_rooms_or_modules() -> None:
    rooms: dict[str, set[str]] = {}
    for module, others in imports().items():
        rooms.setdefault(room_of(module), set()).update(map(room_of, others))
    for graph in (imports(), {room: others - {room} for room, others in rooms.items()}):
        left = {name: set(others) for name, others in graph.items()}
        while free := {name for name, others in left.items() if not others & left.keys()}:
            left = {name: others for name, others in left.items() if name not in free}
        assert left == {}


def test_every_import_was_seen() -> None:
    """The reader of imports finds those of every form."""
    assert "runtime.errors" in imports()["runtime.tensors"]
    assert "export.engines.compiler" in imports()["tools.commands.build"]  # inside a function
    assert "runtime.bundle.bundle" in imports()["runtime.bundle.engines.store"]  # of a folder above
    assert sum(map(len, imports().values())) > 500


@pytest.mark.parametrize("package", [*PACKAGES, "tests", "docs", "about"])
def test_folders_and_files_can_be_read(package: str) -> None:
    folders = [path for path in (ROOT / package, *(ROOT / package).rglob("*")) if path.is_dir()]
    for folder in folders:
        if "__pycache__" in folder.parts or "pretrained" in folder.parts:
            continue
        entries = [one.name for one in folder.iterdir() if one.name != "__pycache__" and not one.name.startswith(".")]
        assert len(entries) <= MOST_ENTRIES, f"{folder}: {len(entries)} entries"
    for path in (ROOT / package).rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES, path


def test_every_folder_is_installed() -> None:
    listed = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("\npackages = ")[2].partition("]")[0]
    there = {f"ldmrt.{module}" for module, path in FILES.items() if path.name == "__init__.py"}
    benchmarks = {name for name in there if name.startswith("ldmrt.tools.benchmarks")}
    assert set(ast.literal_eval(f"{listed}]")) == {"ldmrt", *there} - benchmarks
    folders = {path.parent for path in FILES.values()}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_public_names_are_there() -> None:
    assert all(hasattr(ldmrt.runtime, name) for name in ldmrt.runtime.__all__)
