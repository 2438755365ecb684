"""The image's own command serves as process 1 of a user without rights, and writes nothing but to /tmp."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from .test_files import DOCKERFILES, USER, last_stage

# Namespaces of Linux, as containers have them: root of the first makes the file system read-only, and the second has
# the image's user, as process 1.
OUTER = ["unshare", "--user", "--map-root-user", "--mount"]
INNER = f"unshare --user --map-user={USER} --map-group={USER} --pid --fork --kill-child"
SCRIPT = f'mount -o remount,bind,ro / && cd / && exec {INNER} "$@"'
TOLD = "import os; print(os.getpid(), os.getuid(), os.access('/', os.W_OK), flush=True)"


def inside(*words: object) -> list[str]:
    """A command in such namespaces."""
    return [*OUTER, "sh", "-c", SCRIPT, "sh", *map(str, words)]


@pytest.fixture(scope="module", autouse=True)
def _namespaces() -> None:
    try:
        ran = subprocess.run(inside(sys.executable, "-c", TOLD), capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if ran.returncode:
        pytest.skip(f"namespaces are not allowed here: {ran.stderr.strip()[-200:]}")
    assert ran.stdout.split() == ["1", str(USER), "False"]


def children(pid: int) -> list[int]:
    """The processes that one has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow(minutes=0.05)
@pytest.mark.parametrize("file", DOCKERFILES[:1], ids=lambda file: file.name)
def test_the_command_of_the_image(file: Path, bundle: Path) -> None:
    stage = last_stage(file)
    program, *words = json.loads(stage["ENTRYPOINT"])
    assert (program, json.loads(stage["CMD"])) == ("ldmrt", ["/bundle"])
    words = ["0" if word == "7860" else word for word in words]
    environment = {**os.environ, "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("XDG_CACHE_HOME", None)
    command = inside(sys.executable, "-um", "ldmrt", *words, f"tiny={bundle}")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as outer:
        assert outer.stdout is not None
        told = []
        for line in outer.stdout:
            told.append(line)
            if line.startswith("http://0.0.0.0:"):
                break
        else:
            pytest.fail("".join(told))
        port = told[-1].strip().rpartition(":")[2]
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}
        body = {"prompt": "a red apple", "num_inference_steps": 1}
        assert httpx.post(f"{url}/v1/images/generations", json=body, timeout=60).status_code == 200
        *_, check = json.loads(stage["HEALTHCHECK"].partition("CMD ")[2])
        check = check.replace(":7860", f":{port}")
        assert subprocess.run([sys.executable, "-c", check]).returncode == 0
        (first,) = children(outer.pid)
        os.kill(first, signal.SIGTERM)
        rest = outer.communicate(timeout=60)[0]
    assert outer.returncode == 128 + signal.SIGTERM, rest
    assert "Traceback" not in "".join(told) + rest
    assert subprocess.run([sys.executable, "-c", check], stderr=subprocess.DEVNULL).returncode == 1
