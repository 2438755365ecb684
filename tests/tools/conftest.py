"""The command line, run in this process."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ldmrt.model.training.tasks import presets
from ldmrt.tools.cli import main
from ldmrt.tools.console.training import checks

from ..conftest import made_once, sharing
from ..support.fakes.builder import install
from ..support.fakes.cuda import FakeCuda


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: object
    out: str
    err: str

    @property
    def error(self) -> str:
        """What went wrong: exactly one message, of one or two lines, and nothing on stdout."""
        errors = [line for line in self.err.splitlines() if line.lower().startswith("error: ")]
        assert len(errors) == 1, self.err
        assert "Traceback" not in self.err
        assert self.out == ""
        assert self.code == 2
        return errors[0]


Command = Callable[..., Ran]


def command(*words: object) -> object:
    """Run it in this process; how it ended."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["ldmrt", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
    return left.value.code or 0


@pytest.fixture(scope="session")
def certified(bundle: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with its certificate. Do not write into it."""

    def export(folder: Path) -> None:
        shutil.copytree(bundle, folder)
        assert command("export", checkpoint, folder) == 0

    return made_once(tmp_path_factory, "certified/bundle", export)


@pytest.fixture(scope="session")
def half(
    bundle: Path,
    checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
    export_once: Callable[[Any, Path], Path],
) -> Path:
    """A bundle in float16 with its certificate, and its decoder in float32 as well. Do not write into it."""

    def export(folder: Path) -> None:
        with sharing(export_once):
            assert command("export", checkpoint, folder, "--precision", "fp16", "--fp32-decoder") == 0

    return made_once(tmp_path_factory, "half/bundle", export)


@pytest.fixture
def with_openvino() -> None:
    """Have `verify` measure OpenVINO too, as it does outside of these tests."""


@pytest.fixture(autouse=True)
def without_openvino(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `verify` measure ONNX Runtime alone: OpenVINO compiles for seconds."""
    if "with_openvino" not in request.fixturenames:
        monkeypatch.setattr("ldmrt.runtime.backends.openvino.devices.available", lambda: ())


@pytest.fixture
def changed(certified: Path, tmp_path: Path) -> Path:
    """A copy of it to write into."""
    return Path(shutil.copytree(certified, tmp_path / "changed"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """One of straw, and a TensorRT on it that builds."""
    return install(monkeypatch)


@pytest.fixture
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train networks of a few thousand weights and of few levels, with previews of four images."""
    one = {"block_out_channels": (32,), "norm_num_groups": 8}
    two = {"block_out_channels": (16, 16), "norm_num_groups": 4}
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    small: dict[str, dict[str, Any]] = {
        "AUTOENCODER": {"block_out_channels": (4,) * 4, "layers_per_block": 1, "norm_num_groups": 2},
        "UNET": {**one, "down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)},
        "CLASSES": {**one, "down_block_types": ("AttnDownBlock2D",), "up_block_types": ("AttnUpBlock2D",)},
        "UNCONDITIONAL": {**two, "down_block_types": down, "up_block_types": up, "attention_head_dim": 8},
        "UPSCALER": {**two, "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2},
    }
    for name, values in small.items():
        monkeypatch.setattr(presets, name, replace(getattr(presets, name), **values))
    monkeypatch.setattr(checks, "SHOWN", 4)


@pytest.fixture
def ldmrt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Call it with a command line's words."""

    def run(*words: object) -> Ran:
        capsys.readouterr()
        code = command(*words)
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    monkeypatch.setenv("COLUMNS", "200")  # rich wraps its tables to it
    return run
