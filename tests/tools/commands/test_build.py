"""`ldmrt build`, `ldmrt plan` and `ldmrt engines`: what they print, and what they refuse in one line."""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ldmrt.export.engines import engine_memory
from ldmrt.runtime import Bundle
from ldmrt.runtime.bundle.engines.store import EngineFile, engines, rebuild
from ldmrt.runtime.pipeline.opening import open_pipeline

from ...support.fakes.cuda import FakeCuda

RTX = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed: pip install 'ldmrt[rtx]'",
)
pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")  # of Polygraphy
ALL = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]


@pytest.fixture
def copy(certified: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(certified, tmp_path / "bundle"))


@pytest.mark.slow(minutes=0.1)
@RTX
def test_all_the_way(ldmrt: Any, copy: Path) -> None:
    ran = ldmrt("build", copy, "--target", "sm89")
    assert (ran.code, ran.out) == (0, f"{copy}\n")
    assert "building text_encoder, unet, vae_decoder and vae_encoder: no engine yet" in ran.err
    assert ran.err.count("(predicted ") == 2 * len(ALL)  # scratch and memory of each
    assert "the engines were built but not run: TensorRT-RTX cannot run here. Their ONNX files:" in ran.err
    assert ran.err.count("│ ok │") == 7  # what the certificate stored, on ONNX Runtime

    ran = ldmrt("build", copy, "--target", "sm89")
    assert ran.err == "text_encoder, unet, vae_decoder and vae_encoder reused\n"

    (copy / "engines" / "unet-sm89-0123456789abcdef").mkdir()
    ran = ldmrt("engines", "list", copy)
    assert (ran.code, ran.out.count("fits")) == (0, len(ALL))
    assert "has no engine.json: it was never finished" in ran.out
    assert f"next: ldmrt engines prune {copy}" in ran.out
    ran = ldmrt("engines", "prune", copy)
    assert ran.out == "removed unet-sm89-0123456789abcdef: has no engine.json: it was never finished\n"
    assert len(list((copy / "engines").iterdir())) == len(ALL)
    assert ldmrt("engines", "prune", copy).out == ""
    assert "next:" not in ldmrt("engines", "list", copy).out


@RTX
def test_the_preview_decoder(ldmrt: Any, preview_bundle: Path, tmp_path: Path) -> None:
    """An engine as the decoder's: for one image at a time."""
    folder = shutil.copytree(preview_bundle, tmp_path / "bundle")
    words = ("--target", "sm89", "--components", "vae_decoder_preview", "--batch", 4, "--no-verify")
    ran = ldmrt("build", folder, *words)
    assert (ran.code, ran.out) == (0, f"{folder}\n")
    assert ran.err.startswith("building vae_decoder_preview: no engine yet\n")
    (made,) = engines(folder)
    assert isinstance(made, EngineFile)
    assert [one["latent_sample"].max for one in made.recipe.profile] == [(1, 4, 8, 8)]


@pytest.mark.slow(minutes=0.06)
@RTX
def test_the_folded_step(ldmrt: Any, copy: Path) -> None:
    """It is asked for beside components, of which it is none, and then is an engine like theirs."""
    words = ("--target", "sm89", "--components", "text_encoder", "--folded", "--no-verify")
    ran = ldmrt("build", copy, *words)
    assert (ran.code, ran.out) == (0, f"{copy}\n")
    assert ran.err.startswith("building text_encoder and step: no engine yet\n")
    assert ldmrt("build", copy, *words).err == "text_encoder and step reused\n"
    assert ldmrt("engines", "list", copy).out.count("fits") == 2
    assert ldmrt("engines", "prune", copy).out == ""
    assert {one.recipe.component for one in engines(copy) if isinstance(one, EngineFile)} == {"text_encoder", "step"}


@RTX
def test_where_nothing_holds_for_what_was_built(ldmrt: Any, bundle: Path, copy: Path, tmp_path: Path) -> None:
    import json

    bare = shutil.copytree(bundle, tmp_path / "bare")
    words = ("--target", "sm89", "--components", "text_encoder")
    ran = ldmrt("build", bare, *words)
    assert ran.code == 0
    assert "not verified: it has no parity certificate; next: ldmrt verify" in ran.err

    manifest = json.loads((copy / "ldmrt.json").read_text())
    manifest["certificate"]["about"]["bundle"]["unet/model.onnx"] = "0" * 64
    (copy / "ldmrt.json").write_text(json.dumps(manifest))
    ran = ldmrt("build", copy, *words)
    assert ran.code == 1
    assert "not verified: the bundle's certificate does not match its files (unet/model.onnx is not the file" in ran.err
    assert len(list(engines(copy))) == 1


@RTX
def test_a_certificate_that_no_longer_holds(ldmrt: Any, copy: Path) -> None:
    """A changed network whose hashes were made to agree: the replay finds it."""
    import json

    from ...support.damage.bundle_faults import truthful, weight

    weight("vae_decoder", "decoder.conv_in.bias", lambda value: value + 1)(copy)
    truthful(copy)
    manifest = json.loads((copy / "ldmrt.json").read_text())
    manifest["certificate"]["about"]["bundle"] |= {
        name: entry["sha256"] for name, entry in manifest["files"].items() if name.startswith("vae_decoder/model")
    }
    (copy / "ldmrt.json").write_text(json.dumps(manifest))
    ran = ldmrt("build", copy, "--target", "sm89", "--components", "vae_decoder")
    assert ran.code == 1
    assert "image of seed 0 (onnxruntime)" in ran.err


@RTX
def test_where_it_can_run_the_engines_are_held_to_it(ldmrt: Any, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr("ldmrt.runtime.backends.ort.engine.available", lambda: ("onnxruntime", "tensorrt-rtx"))
    monkeypatch.setattr(
        "ldmrt.tools.console.verification.measure.replay", lambda bundle, backends: asked.append(backends)
    )
    words = ("--target", "sm89", "--components", "text_encoder")
    ran = ldmrt("build", copy, *words)
    assert (ran.code, asked) == (0, [("tensorrt-rtx",)])
    assert "not run" not in ran.err
    shutil.rmtree(copy / "engines")
    assert ldmrt("build", copy, *words, "--no-verify").code == 0
    assert len(asked) == 1


@RTX
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "sm90"], "--target: TensorRT-RTX has no target sm90; expected sm75, "),
        (["--target", "sm89,sm75"], "text_encoder: TensorRT-RTX cannot build it for sm75, which has no matrix"),
        (["--target", "sm89,gpu"], "--target: TensorRT-RTX has no target gpu"),
        (["--target", "sm89", "--sizes", "17x16"], "unet: invalid width; expected a multiple of 2 from 4 on"),
        (["--target", "sm89", "--sizes", "big"], "--sizes: cannot read it; expected WIDTHxHEIGHT"),
        (["--target", "sm89", "--batch", "0"], "--batch: invalid batch"),
        (["--target", "sm89", "--components", "step"], "--components: no component 'step'; expected text_encoder, "),
        (["--target", "sm89", "--folded", "--steps", "0"], "--steps: invalid steps; expected 1 to 1000"),
        (["--target", "sm89", "--components", "vea"], "--components: no component 'vea', did you mean 'vae_"),
        (["--target", "sm89", "--refit"], "--refit: TensorRT-RTX compiles engines with replaceable weights by CUDA"),
        (["--backend", "tensorrt"], "backend: TensorRT is not installed"),
    ],
)  # fmt: skip
def test_refused(ldmrt: Any, bundle: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert message in ldmrt("build", bundle, *words).error
    assert not (bundle / "engines").exists()


@RTX
def test_this_machine_has_no_gpu(ldmrt: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(library: str) -> Any:
        raise OSError(f"{library}: cannot open shared object file")

    monkeypatch.setattr("ldmrt.runtime.backends.gpu.ctypes", SimpleNamespace(CDLL=missing))
    ran = ldmrt("build", bundle)
    assert "gpu: there is no NVIDIA driver here" in ran.error
    assert "name the GPU: --target sm89" in ran.err


@RTX
def test_too_little_room(ldmrt: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_memory, "free_memory", lambda: 10**6)
    ran = ldmrt("build", bundle, "--target", "sm89")
    assert "unet: this machine has too little memory to build it; expected " in ran.error
    assert "found 1.0 MB available" in ran.error
    monkeypatch.setattr(engine_memory.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    ran = ldmrt("build", bundle, "--target", "sm89")
    assert "build: not enough space for the engines on the disk of" in ran.error
    assert "try: ldmrt engines prune" in ran.err
    assert not (bundle / "engines").exists()


def test_not_installed(ldmrt: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    ran = ldmrt("build", bundle, "--target", "sm89")
    assert "backend: TensorRT-RTX is not installed" in ran.error
    assert "try: pip install 'ldmrt[rtx]'" in ran.err


def test_plan(ldmrt: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)  # which it does not need
    ran = ldmrt("plan", bundle, "--sizes", "16x16,32x32", "--batch", "1-4")
    assert (ran.code, ran.err) == (0, "")
    assert [name for name in ALL if f"│ {name} " in ran.out] == ALL
    assert "2-8x4x8x8, 2-8x4x16x16" in ran.out
    for what in ("GPU memory ", "disk ", "memory to build "):
        assert f"{what}" in ran.out.splitlines()[-2] + ran.out.splitlines()[-1]
    assert not (bundle / "engines").exists()
    assert "--sizes: cannot read it" in ldmrt("plan", bundle, "--sizes", "big").error
    assert "│ step" not in ran.out
    ran = ldmrt("plan", bundle, "--folded", "--batch", "1-4", "--steps", "10")
    assert "│ step " in ran.out
    assert "1-4x1-6x4x8x8" in ran.out


def test_a_foreign_directory(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    foreign = shutil.copytree(bundle, tmp_path / "foreign")
    (foreign / "ldmrt.json").unlink()
    assert "foreign has no fused step" in ldmrt("plan", foreign, "--folded").error
    assert "has no manifest that says its shapes" in ldmrt("plan", foreign).error
    assert "no directory" in ldmrt("engines", "list", tmp_path / "none").error


def test_engines_of_another_version(ldmrt: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ldmrt.export.engines.profiles import Wanted, recipes
    from ldmrt.runtime.bundle.engines.store import FOLDER, write_engine

    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    opened = Bundle.open(folder)
    wanted = Wanted.read(None, "1", "on", 16)
    for one in recipes(opened, wanted, backend="tensorrt-rtx", version="1.0", targets=["sm89"]):
        assert isinstance(write_engine(folder / FOLDER, one, b"a plan", {"scratch": 0}), EngineFile)
    monkeypatch.setattr("ldmrt.tools.commands.engines.versions", lambda: {"tensorrt-rtx": "1.7"})
    assert ldmrt("engines", "list", folder).out.count("made by 1.0, 1.7 is") == len(ALL)
    ran = ldmrt("engines", "prune", folder)
    assert ran.out.count("removed ") == len(ALL)
    assert list((folder / FOLDER).iterdir()) == []


def test_weights_that_are_streamed(ldmrt: Any, copy: Path, gpu: FakeCuda) -> None:
    words = ("--backend", "tensorrt", "--no-verify", "--components", "unet", "--weight-streaming")
    plain = ldmrt("build", copy, *words[:-1])
    assert plain.code == 0, plain.err
    expected = drawn(copy)
    all_of_them = gpu.did["bytes on the GPU"]
    shutil.rmtree(copy / "engines")
    assert ldmrt("build", copy, *words, 0.25).code == 0
    assert drawn(copy).tobytes() == expected.tobytes()
    assert all_of_them == 0  # nothing streams
    quarter = gpu.did["bytes on the GPU"]
    shutil.rmtree(copy / "engines")
    assert ldmrt("build", copy, *words, 1).code == 0
    drawn(copy)
    assert 3 < gpu.did["bytes on the GPU"] / quarter < 5
    (listed,) = engines(copy)
    assert isinstance(listed, EngineFile)
    assert listed.recipe.weights_on_gpu == 1
    assert ldmrt("build", copy, *words, 1).err == "unet reused\n"
    assert "2.0 is not in the range 0<=x<=1" in ldmrt("build", copy, *words, 2).err
    assert "nan is no number from 0 to 1" in ldmrt("build", copy, *words, "nan").err
    assert ldmrt("build", copy, *words, 0.25).code == 0  # of two that differ in flags, the newest runs
    drawn(copy)
    assert gpu.did["bytes on the GPU"] == quarter
    assert rebuild(Bundle.open(copy), listed.recipe).endswith("--batch 1 --weight-streaming 1")


def drawn(bundle: Path) -> Any:
    """What the U-Net's engine computes."""
    with open_pipeline(bundle, "tensorrt", check=False) as pipeline:
        network = pipeline.engines["unet"]
        shapes = {"sample": (2, 4, 8, 8), "timestep": (2,), "encoder_hidden_states": (2, 16, 24)}
        return network(**{name: np.ones(shape, np.float32) for name, shape in shapes.items()})["out_sample"]


def test_the_builders_level_and_its_timings(ldmrt: Any, copy: Path, gpu: FakeCuda, tmp_path: Path) -> None:
    cache = tmp_path / "new" / "timings.bin"
    words = ("build", copy, "--backend", "tensorrt", "--no-verify", "--timing-cache", cache, "--components")
    assert ldmrt(*words, "unet", "--builder-level", 5).code == 0
    assert ldmrt(*words, "unet,vae_decoder").code == 0
    assert cache.read_bytes().count(b"timing of") == 3
    levels = {one.recipe.builder_level for one in engines(copy) if isinstance(one, EngineFile)}
    assert levels == {5, None}
    cache.write_bytes(b"weights")
    ran = ldmrt(*words, "vae_encoder")
    assert "--timing-cache: TensorRT takes no timings from" in ran.error
    assert cache.read_bytes() == b"weights"
    assert not any(one.name.startswith("vae_encoder") for one in (copy / "engines").iterdir())


@RTX
@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--builder-level", 3, "--builder-level: TensorRT-RTX builds the same engine at every level"),
        ("--timing-cache", "timings.bin", "--timing-cache: TensorRT-RTX measures no kernels while it builds"),
    ],
)
def test_what_tensorrt_rtx_has_not(ldmrt: Any, copy: Path, option: str, value: Any, problem: str) -> None:
    assert problem in ldmrt("build", copy, "--target", "sm89", option, value).error
    assert not (copy / "engines").exists()


@pytest.mark.slow(minutes=0.05)
@RTX
def test_tensorrt_rtx_builds_engines_that_stream(ldmrt: Any, copy: Path) -> None:
    ran = ldmrt("build", copy, "--target", "sm89", "--no-verify", "--components", "unet", "--weight-streaming", 0.5)
    assert ran.code == 0, ran.err
    (made,) = engines(copy)
    assert isinstance(made, EngineFile)
    assert made.recipe.weights_on_gpu == 0.5
    planned, whole = (json.loads(ldmrt("plan", copy, "--components", "unet", "--json", *more).out)["engines"][0]
                      for more in (("--weight-streaming", 0.5), ()))  # fmt: skip
    # TensorRT-RTX logs the bytes of all weights; how many of them stream, an engine says on a GPU alone.
    assert planned["weights"] == pytest.approx(0.5 * made.measured["weights"], rel=0.15)
    assert planned["disk"] == pytest.approx(made.size, rel=0.15)
    assert {**planned, "weights": whole["weights"]} == whole
