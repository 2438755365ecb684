"""Commands where an optional package is missing or broken: one message, which names the extra, and exit code 2."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ldmrt.runtime.optional import PACKAGES, ours, unavailable
from ldmrt.tools.cli import COMMANDS

# What each command cannot do without, and its words. BUNDLE and CHECKPOINT are put in.
CHECKPOINT = {"torch", "transformers", "safetensors"}
NEEDS: dict[str, tuple[str, set[str]]] = {
    "demo": ("demo --bundle NEW/bundle -o NEW/x.png", {*CHECKPOINT, "onnx", "onnx_ir", "onnxscript", "onnxruntime"}),
    "generate": ("generate BUNDLE cat --steps 1 -o NEW/x.png", {"onnxruntime", "tokenizers", "PIL"}),
    "upscale": ("upscale BUNDLE IMAGE", {"PIL"}),
    "info": ("info IMAGE", {"PIL"}),
    "replay": ("replay IMAGE", {"PIL"}),
    "sweep": ("sweep BUNDLE cat --axis steps=1,2 -o NEW/x.html", {"onnxruntime", "tokenizers", "PIL"}),
    "interpolate": (
        "interpolate BUNDLE a b --steps 1 --frames 2 -o NEW/x.mp4",
        {"onnxruntime", "tokenizers", "PIL", "av"},
    ),
    "batch": ("batch BUNDLE PROMPTS NEW/out", {"onnxruntime", "tokenizers", "PIL"}),
    "export": ("export CHECKPOINT NEW/bundle --no-verify", {*CHECKPOINT, "onnx", "onnx_ir", "onnxscript"}),
    "verify": ("verify BUNDLE --against CHECKPOINT --backend onnxruntime", {*CHECKPOINT, "onnxruntime"}),
    "inspect": ("inspect BUNDLE", {"rich"}),
    "plan": ("plan BUNDLE", {"onnx"}),
    "build": ("build BUNDLE --target sm89", {"tensorrt_rtx", "polygraphy"}),
    "engines": ("engines refit BUNDLE --from BUNDLE", {"tensorrt"}),
    "serve": (
        "serve BUNDLE --port 0",
        {"fastapi", "starlette", "pydantic", "uvicorn", "python_multipart", "prometheus_client", "onnxruntime"},
    ),
    "export-triton": ("export-triton BUNDLE NEW/models", set()),
    "bench": ("bench BUNDLE --pictures 1 --steps 1", {"onnxruntime", "tokenizers"}),
    "samplers": ("samplers --plot NEW/x.png", {"matplotlib"}),
    "data": ("data emoji NEW/data", {"PIL"}),
    "train": ("train autoencoder --data NEW --out NEW/run", {"torch", "PIL"}),
    "evaluate": ("evaluate BUNDLE --data NEW", {"torch"}),
}
# A process for each package is slow, as PyTorch is loaded in each: one loads it once, and its children have it blocked.
PROGRAM = """
import io, json, os, sys, traceback
import numpy, torch, transformers, onnx, onnxscript, PIL.Image, rich.console
for package, words in json.loads(sys.argv[1]):
    reads, writes = os.pipe()
    if not (child := os.fork()):
        os.dup2(writes, 1), os.dup2(writes, 2)
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]
        sys.modules[package] = None
        sys.argv = ["ldmrt", *words]
        try:
            from ldmrt.tools.cli import main
            main()
        except SystemExit as left:
            sys.stdout.flush()
            os._exit(left.code or 0)
        except BaseException:
            traceback.print_exc()
        os._exit(99)
    os.close(writes)
    said = open(reads, "rb").read().decode()
    print(json.dumps([package, words, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said]), flush=True)
"""


def test_every_command_and_package_is_tried() -> None:
    assert NEEDS.keys() == COMMANDS.keys()
    tried = set().union(*(packages for _, packages in NEEDS.values()))
    # click and numpy are needed by all, tomli by Python 3.10 alone; the others have a test of their own
    elsewhere = {"click", "numpy", "huggingface_hub", "nncf", "openvino", "skimage", "cuda.bindings", "diffusers",
                 "jinja2", "resvg_py", "tomli", "accelerate", "psutil", "datasets",
                 "tensorboard", "wandb", "bitsandbytes", "opentelemetry", "ray", "pyarrow", "spandrel"}  # fmt: skip
    assert PACKAGES.keys() - tried == elsewhere


@pytest.mark.slow(minutes=1)
def test_commands_without_a_package(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    image = Path(__file__).parents[2] / "docs" / "images" / "demo.png"
    prompts = Path(__file__).parents[2] / "tools" / "emoji" / "demo_prompts.txt"
    places = {"BUNDLE": str(bundle), "CHECKPOINT": str(checkpoint), "IMAGE": str(image), "PROMPTS": str(prompts)}
    asked = [
        (package, [places.get(word, word.replace("NEW", str(tmp_path))) for word in words.split()])
        for words, packages in NEEDS.values()
        for package in sorted(packages)
    ]
    ran = subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(asked)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(found) == len(asked)
    for package, words, code, said in found:
        lines = [line for line in said.splitlines() if not line.startswith(("warning: ", "reading "))]
        assert code == 2, (package, words, said)
        assert len(lines) == 2, (package, words, said)
        assert lines[0].startswith("error: ")
        assert lines[0].endswith(f": {PACKAGES[package].title} is not installed"), (package, words, said)
        install = "pip install 'ldmrt[demo]'" if words[0] == "demo" else PACKAGES[package].install
        assert lines[1] == f"  try: {install}"
    assert not list(tmp_path.iterdir())  # nothing half made stays


def fault(program: str, where: Path, name: str) -> str:
    """What is said of an import of a package made for this."""
    (where / f"{name}.py").write_text(program)
    sys.path.insert(0, str(where))
    try:
        exec(f"import {name}", {"__name__": "ldmrt.somewhere"})
    except (ImportError, OSError) as error:
        return str(unavailable(error, "unet"))
    finally:
        sys.path.remove(str(where))
        sys.modules.pop(name, None)
    return ""


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("raise ImportError('cannot import name x')", "cannot import name x"),
        ("raise ImportError('libcudart.so.13: cannot open shared object file')", "libcudart.so.13: cannot open"),
        ("import ctypes; ctypes.CDLL('libnowhere.so.7')", "libnowhere.so.7: cannot open shared object file"),
        ("import no_such_package_at_all", "No module named 'no_such_package_at_all'"),
    ],
)
def test_a_broken_package_is_not_called_missing(tmp_path: Path, program: str, said: str) -> None:
    message = fault(program, tmp_path, "broken_library")
    assert message.startswith("unet: broken_library is installed and does not work; found ")
    assert said in message
    assert message.endswith("  try: pip install --force-reinstall broken_library")


def test_export_looks_before_it_works(ldmrt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # type: ignore[arg-type]
    assert "onnxscript is not installed" in ldmrt("export", tmp_path / "nowhere", tmp_path / "bundle").error


def test_a_missing_part_of_a_package_that_is_there() -> None:
    error = ModuleNotFoundError("No module named 'numpy.nonsense'", name="numpy.nonsense")
    assert str(unavailable(error, "unet")).startswith("unet: NumPy is installed and does not work; found No module")


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_every_package_that_is_missing_names_what_brings_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    with pytest.raises(ImportError) as caught:
        __import__(name)
    error = unavailable(caught.value, "unet")
    assert error.problem == f"{PACKAGES[name].title} is not installed"
    assert error.hint is not None
    assert error.hint.startswith("pip install ")


def test_a_fault_of_this_package_is_no_missing_package() -> None:
    with pytest.raises(ImportError) as caught:
        exec("from ldmrt.runtime import nonsense")
    assert ours(caught.value)
    assert not ours(ImportError("no", name="torch"))
    assert isinstance(sys.modules["ldmrt.runtime"], ModuleType)
