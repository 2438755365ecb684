"""A model repository of the tiny bundle, and Triton's own server for it, in an environment of its own."""

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ldmrt.serve.triton.repository import write_repository

# The server's Python stub was compiled for NumPy 1, whose arrays have another layout.
SERVER = ("nvidia-pytriton==0.7.0", "numpy==1.26.4")
OPENING = {"backend": "onnxruntime", "compute": "fp32", "threads": 1, "low_memory": False, "tile": None,
           "tile_passes": 3, "on_overflow": "stop", "keep_optimized": False}  # fmt: skip
STARTS = 60  # seconds in which the server answers


@pytest.fixture(scope="session")
def repository(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the models of the tiny bundle. Do not write into it."""
    place = tmp_path_factory.mktemp("triton") / "models"
    assert write_repository(bundle, "tiny", place, OPENING, rows=8, waiting=8) == [
        *("tiny_text_encoder", "tiny_vae_decoder", "ldmrt_tiny"),
    ]
    return place


class Triton:
    """A server that runs, and the Python that has its client."""

    def __init__(self, url: str, python: Path) -> None:
        self.url, self.python = url, python

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Ask by HTTP, with the protocol's JSON; returns the status and the answer."""
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(f"http://{self.url}/v2/{path}", data, timeout=120) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


def environment(place: Path) -> Path:
    """Make an environment with the server and its client, behind which are the packages of this one."""
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    python = place / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip())
    folders = [folder for folder in sys.path if folder.endswith("-packages")]
    (site / "base.pth").write_text("import site; " + "; ".join(f"site.addsitedir({folder!r})" for folder in folders))
    client = f"tritonclient[http]=={importlib.metadata.version('tritonclient')}"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--no-deps", *SERVER], check=True)
    subprocess.run([*install, client], check=True)
    return site


@pytest.fixture(scope="session")
def triton(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """Triton's server with the repository, whose drawing model is loaded."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64") or sys.version_info >= (3, 13):
        pytest.skip("nvidia-pytriton's server, and NumPy 1.26, are for Linux on x86-64 and Python before 3.13")
    pytest.importorskip("tritonclient", reason="the dev extra is not installed")
    place = tmp_path_factory.mktemp("server")
    server = environment(place / "venv") / "pytriton" / "tritonserver"
    stub = server / "python_backend_stubs" / f"3.{sys.version_info.minor}" / "triton_python_backend_stub"
    shutil.copy2(stub, server / "backends" / "python")  # as deep as it was: it finds its libraries by relative paths
    for program in (server / "backends" / "python" / stub.name, server / "bin" / "tritonserver"):
        program.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{free.getsockname()[1]}"
    # Its own copy: Python writes a __pycache__ beside the model.py that the server imports.
    models = shutil.copytree(repository, place / "models")
    command = [server / "bin" / "tritonserver", "--model-repository", models, "--backend-directory",
               server / "backends", "--model-control-mode", "explicit", "--load-model", "ldmrt_tiny", "--http-address",
               "127.0.0.1", "--http-port", url.partition(":")[2], "--allow-grpc", "false",
               "--allow-metrics", "false"]  # fmt: skip
    paths = {"PATH": f"{place / 'venv' / 'bin'}:{os.environ['PATH']}",
             "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR")), "OMP_NUM_THREADS": "1"}  # fmt: skip
    with (place / "log").open("wb") as log:
        running = subprocess.Popen([*map(str, command)], stdout=log, stderr=log, env={**os.environ, **paths})
    try:
        asked = Triton(url, place / "venv" / "bin" / "python")
        until = time.monotonic() + STARTS
        while running.poll() is None and time.monotonic() < until:
            with contextlib.suppress(urllib.error.URLError, ValueError):
                if asked.ask("models/ldmrt_tiny")[0] == 200:
                    break
            time.sleep(0.2)
        else:
            pytest.fail((place / "log").read_text(errors="replace"))
        yield asked
    finally:
        running.terminate()
        running.wait(60)
