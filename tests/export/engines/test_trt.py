"""Engines that TensorRT-RTX really builds in half precision, of the tiny and the shipped model. None runs."""

import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ldmrt.export.bundle_writer import export_bundle
from ldmrt.export.engines import compiler
from ldmrt.export.engines.build import Built, Step, build, decide, summary
from ldmrt.export.engines.engine_memory import predict
from ldmrt.export.engines.profiles import Wanted, recipes
from ldmrt.model import load
from ldmrt.runtime import Bundle, LdmrtError
from ldmrt.runtime.bundle.engines.engine_key import REFIT, Recipe
from ldmrt.runtime.bundle.engines.store import FOLDER, EngineFile, engines, find_engine, model_digests
from ldmrt.runtime.bundle.engines.unused import unused_engines
from ldmrt.runtime.bundle.graphs import STEP

from ...conftest import sharing
from ...support.damage.bundle_faults import change_a_weight

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'ldmrt[rtx]'")

pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")  # of Polygraphy
SHIPPED = Path(__file__).parents[3] / "model" / "pretrained" / "emoji64"
ALL = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
TARGETS = ("sm75", "sm86", "sm89", "sm120", "portable")
RTX = "tensorrt-rtx"
slow_on_shipped = pytest.mark.parametrize(
    "demo", [pytest.param("shipped", marks=pytest.mark.slow)], indirect=True, scope="module"
)


@pytest.fixture(scope="module", params=["tiny"])
def demo(request: Any, checkpoint: Path, export_once: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in float16. Do not write into it."""
    folder, source = tmp_path_factory.mktemp("demo") / "bundle", SHIPPED
    if request.param == "tiny":
        source = Path(shutil.copytree(checkpoint, folder.parent / "checkpoint"))
        path = source / "text_encoder" / "config.json"  # heads of 8: TensorRT-RTX fails on the tiny model's, of 12
        path.write_text(json.dumps({**json.loads(path.read_text()), "num_attention_heads": 3}))
    loaded = load(source, dtype={"": torch.float16})
    with sharing(export_once):
        assert len(list(export_bundle(loaded, folder))) == len(ALL)
    return folder


@pytest.fixture(scope="module")
def built(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With engines for one GPU. Do not write into it."""
    folder = Path(shutil.copytree(demo, tmp_path_factory.mktemp("built") / "bundle"))
    events = list(build(Bundle.open(folder), decide(folder, wished(folder, ["sm89"]))))
    assert [one.reused for one in events if isinstance(one, Built)] == [False] * len(ALL)
    steps = [one for one in events if isinstance(one, Step)]
    assert {one.recipe.component for one in steps} == set(ALL)  # the monitor said something of each
    assert all(0 <= one.done <= 1 and one.phase for one in steps)
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "bundle"))


def sizes(opened: Bundle) -> str:
    """The model's own size, as an option."""
    return f"{opened.stage.size}x{opened.stage.size}"


def weights(folder: Path, component: str) -> int:
    """How many bytes they take in the bundle."""
    return (folder / component / "model.onnx_data").stat().st_size


def wished(folder: Path, targets: Sequence[str]) -> list[Recipe]:
    opened = Bundle.open(folder, check=False)
    wanted = Wanted.read(sizes(opened), "1-4", "on", opened.stage.size)
    return recipes(opened, wanted, backend=RTX, version=compiler.version(RTX), targets=targets)


def made(folder: Path, targets: Sequence[str]) -> list[str]:
    """Build, and say which were not reused."""
    events = build(Bundle.open(folder), decide(folder, wished(folder, targets)))
    return [one.recipe.key for one in events if isinstance(one, Built) and not one.reused]


def whole(folder: Path) -> list[EngineFile]:
    """The engines of a bundle, each as it was built."""
    found = list(engines(folder))
    assert [one for one in found if not isinstance(one, EngineFile) or one.damaged] == []
    return [one for one in found if isinstance(one, EngineFile)]


@slow_on_shipped  # a calibration
def test_predicted_and_measured(built: Path) -> None:
    opened, found = Bundle.open(built), whole(built)
    assert [one.recipe.component for one in found] == ALL
    for one in found:
        before = predict(opened, one.recipe)
        # memory.py's figures were fitted to within a sixth
        assert one.measured["scratch"] == pytest.approx(before.scratch, rel=1 / 6)
        assert one.measured["weights"] <= one.size
        assert one.size == pytest.approx(
            before.disk, rel=0.15, abs=4e6
        )  # kernels are of 150 to 270 kB each, and shared
        assert 0 < one.measured["build_peak"] < 1.25 * before.build  # less where pages are used again
        assert one.measured["seconds"] > 0


def test_it_is_found_and_read(built: Path) -> None:
    opened = Bundle.open(built)
    asked: dict[str, Any] = {"backend": RTX, "version": compiler.version(RTX), "gpu": "sm89"}
    channels = opened.stage.space.channels
    one = find_engine(opened, "vae_decoder", shapes={"latent_sample": (1, channels, 8, 8)}, **asked)
    assert len(one.read(opened)) == one.size > weights(built, "vae_decoder")
    with pytest.raises(LdmrtError, match=f"takes 1x{channels}x8x8, not 1x{channels}x16x16"):
        find_engine(opened, "vae_decoder", shapes={"latent_sample": (1, channels, 16, 16)}, **asked)


def test_again_all_are_reused(copy: Path) -> None:
    assert summary(decide(copy, wished(copy, ["sm89"]))) == f"{', '.join(ALL[:-1])} and {ALL[-1]} reused"
    assert made(copy, ["sm89"]) == []


def test_after_a_changed_weight_one_is_built(copy: Path) -> None:
    change_a_weight(copy, "vae_encoder")
    said = "rebuilding vae_encoder: its weights changed; text_encoder, unet and vae_decoder reused"
    assert summary(decide(copy, wished(copy, ["sm89"]))) == said
    assert [key.split("-")[0] for key in made(copy, ["sm89"])] == ["vae_encoder"]


@pytest.mark.slow
def test_every_target(demo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo, tmp_path / "bundle"))
    assert len(made(folder, TARGETS)) == len(ALL) * len(TARGETS)
    found = {(one.recipe.component, one.recipe.target) for one in whole(folder)}
    assert found == {(name, target) for name in ALL for target in TARGETS}
    assert len({one.sha256 for one in whole(folder)}) == len(found)  # each is another
    assert made(folder, TARGETS) == []
    change_a_weight(folder, "unet")
    again = made(folder, TARGETS)
    assert [key.rsplit("-", 1)[0] for key in again] == [f"unet-{target}" for target in TARGETS]


BUILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have it ignored
from ldmrt.tools.cli import main
from ldmrt.runtime.bundle.engines.unused import unused_engines
sys.argv = ["ldmrt", "build", *sys.argv[1:], "--target", "sm89", "--no-verify"]
main()
"""


def begun(folder: Path) -> "subprocess.Popen[str]":
    """A build in a process of its own, that has just said what it will build."""
    command = [sys.executable, "-c", BUILD, str(folder), "--sizes", sizes(Bundle.open(folder)), "--batch", "1-4"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert child.stderr is not None
    assert "building" in child.stderr.readline()
    return child


def killed(folder: Path, times: int, seconds: float) -> int:
    """Kill builds at random moments; how many left something to be done."""
    rng, left = random.Random(0), 0
    for _ in range(times):
        with begun(folder) as child:
            time.sleep(rng.uniform(0, seconds))
            child.send_signal(signal.SIGKILL)
            child.wait()
            assert child.stderr is not None
            assert "rror" not in child.stderr.read()
        Bundle.open(folder)
        usable = [one for one in engines(folder) if isinstance(one, EngineFile)]
        assert not any(one.damaged for one in usable)
        if len(usable) == len(ALL):  # done before the kill: begin anew
            shutil.rmtree(folder / FOLDER)
        else:
            left += 1
    return left


def settled(folder: Path) -> None:
    """The next build completes, and leaves nothing half done."""
    made(folder, ["sm89"])
    assert [one.recipe.component for one in whole(folder)] == ALL
    names = {path.name for path in folder.glob(f"{FOLDER}/*/*")}
    assert names == {"engine.plan", "engine.json"}


def test_killed(demo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo, tmp_path / "bundle"))
    assert killed(folder, 3, 1.5) > 0
    settled(folder)


@slow_on_shipped
def test_killed_at_ten_random_moments(demo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo, tmp_path / "bundle"))
    assert killed(folder, 10, 6.0) > 2
    settled(folder)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_stopped_from_the_keyboard(demo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo, tmp_path / "bundle"))
    with begun(folder) as child:
        child.send_signal(signal.SIGINT)
        said = child.communicate(timeout=60)[1]
    assert (child.returncode, said.strip().splitlines()[-1:]) == (130, ["stopped"])
    assert "Traceback" not in said
    assert len(whole(folder)) < len(ALL)


def test_what_cannot_be_built_is_said_in_a_line(demo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo, tmp_path / "bundle"))
    (folder / "unet" / "model.onnx").write_bytes(b"no graph")
    wish = [one for one in wished(demo, ["sm89"]) if one.component == "unet"]
    with pytest.raises(LdmrtError, match="unet: TensorRT-RTX cannot build it for sm89; found ") as failed:
        compiler.compile_engine(folder / "unet" / "model.onnx", wish[0], lambda phase, done: True)
    assert str(failed.value).splitlines()[1:] == [f"  try: ldmrt verify {folder}"]


@pytest.mark.parametrize(
    ("targets", "flags", "message"),
    [
        (["sm89", "sm90"], [], r"--target: TensorRT-RTX has no target sm90; expected sm75, .*portable, this"),
        (["gpu"], [], r"--target: TensorRT-RTX has no target gpu"),
        (
            ["sm89"],
            [REFIT],
            r"--refit: TensorRT-RTX compiles .* fails where no GPU is\n  try: ldmrt export .*--lora",
        ),
    ],
)
def test_targets_and_flags_that_it_has_not(targets: list[str], flags: list[str], message: str) -> None:
    with pytest.raises(LdmrtError, match=message):
        compiler.check_targets(RTX, targets, flags)


def test_the_other_tensorrt_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler.library(RTX)
    monkeypatch.setattr("polygraphy.config.USE_TENSORRT_RTX", False)
    with pytest.raises(LdmrtError, match="bound to the other TensorRT"):
        compiler.library(RTX)


class Full:
    """A stand-in for TensorRT, which cannot be installed where no GPU is."""

    __version__ = "11.4.0.1"

    class HardwareCompatibilityLevel:
        """As TensorRT names them."""

        NONE, AMPERE_PLUS = "none", "ampere+"


def test_full_tensorrt_refits_and_builds_for_its_own_gpu(monkeypatch: pytest.MonkeyPatch, demo: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", Full)
    monkeypatch.setattr("polygraphy.config.USE_TENSORRT_RTX", False)
    monkeypatch.setattr("ldmrt.runtime.backends.gpu.compute_capability", lambda: "sm90")
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("polygraphy.backend.trt.CreateConfig", lambda **given: asked.append(given))
    assert compiler.version("tensorrt") == "11.4.0.1"
    compiler.check_targets("tensorrt", ["sm90", "portable"], [REFIT])
    with pytest.raises(LdmrtError, match="TensorRT builds for the GPU of this machine; expected sm90 or portable"):
        compiler.check_targets("tensorrt", ["sm89"], [])
    opened, wanted = Bundle.open(demo, check=False), Wanted.read("64x64", "1", "on", 64)
    for flags in ([], [REFIT]):
        for one in recipes(
            opened, wanted, backend="tensorrt", version="11.4", targets=["sm90", "portable"], flags=flags
        ):
            if one.component == "unet":
                compiler._config(Full, one, [], None)
    assert [(given["refittable"], given["hardware_compatibility_level"]) for given in asked] == [
        (False, "none"), (False, "ampere+"), (True, "none"), (True, "ampere+"),
    ]  # fmt: skip


def test_growth_is_what_a_block_adds() -> None:
    from ldmrt.export.engines.resident_memory import growth

    with growth() as memory, mmap.mmap(-1, 50_000_000) as held:  # new pages: malloc may give those that it kept
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        time.sleep(0.1)
    if memory.most is not None:
        assert memory.most == pytest.approx(50e6, rel=0.2)  # other threads allocate too


def test_the_folded_step_compiles(copy: Path) -> None:
    """For one picture and for four, with or without guidance, of any sampler; beside the others, which stay."""
    opened = Bundle.open(copy)
    wanted = Wanted.read(sizes(opened), "1-4", "any", opened.stage.size)
    (wish,) = recipes(opened, wanted, backend=RTX, version=compiler.version(RTX), targets=["sm89"], graphs=[STEP])
    assert wish.weights == model_digests(opened, "unet")[1]
    *_, done = build(opened, decide(copy, [wish]))
    assert isinstance(done, Built)
    assert done.engine.size > weights(copy, "unet")  # they are in it
    before = predict(opened, wish)
    # what memory.py says that it takes more than was predicted: 2 to 8 MB
    assert before.scratch < done.engine.measured["scratch"] < before.scratch + 9e6
    assert done.engine.size < 2 * before.disk
    assert [one.recipe.component for one in whole(copy)] == [STEP, *ALL]
    assert summary(decide(copy, [wish])) == "step reused"
    assert unused_engines(opened, {RTX: compiler.version(RTX)}) == []
