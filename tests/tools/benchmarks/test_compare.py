"""`compare`: that all programs make the same image, and that no speed of another one is shown."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ldmrt.runtime import LdmrtError
from ldmrt.tools.benchmarks import compare as command
from ldmrt.tools.benchmarks.compare import openvino_contestants, show
from ldmrt.tools.benchmarks.contestant import Ask, genai, optimum_intel
from ldmrt.tools.benchmarks.race import Contestant, race, ratio, similarity

ASK: Ask = {"prompt": "a red apple", "width": 16, "height": 16, "steps": 2, "guidance": 3.0, "threads": 1}
LATENTS = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)
CALL = {"width": 16, "height": 16, "num_inference_steps": 2, "guidance_scale": 3.0}  # as every program names them


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    np.save(tmp_path / "noise.npy", LATENTS)
    return {**ASK, "noise": str(tmp_path / "noise.npy")}


@pytest.mark.oracle
@pytest.mark.slow
def test_race_draws_the_same_picture_with_both(bundle: Path, checkpoint: Path, ask: Ask, tmp_path: Path) -> None:
    contestants = [Contestant("diffusers", sys.executable, checkpoint), Contestant("ldmrt", sys.executable, bundle)]
    race(contestants, ask, 2, tmp_path)
    assert all(len(one.seconds) == 2 and one.peak > 10e6 and one.ready > 0 for one in contestants)
    assert contestants[1].psnr > contestants[1].least == 60  # as the command asks


def test_a_contestant_that_fails_is_named(ask: Ask, tmp_path: Path) -> None:
    broken = Contestant("ldmrt", sys.executable, tmp_path / "nowhere")
    with pytest.raises(LdmrtError, match=r"ldmrt ended; expected an image; found .*nowhere"):
        race([broken], ask, 1, tmp_path)


def test_no_speed_of_another_picture(capsys: pytest.CaptureFixture[str]) -> None:
    """A contestant that may compute in bf16 is allowed to differ more."""
    honest = Contestant("diffusers", "", Path(), seconds=[4.0, 2.0], psnr=np.inf)
    wrong = Contestant("ldmrt", "", Path(), seconds=[1.0, 0.625], psnr=31.0)
    coarse = Contestant("GenAI", "", Path(), precision="bf16", seconds=[0.5, 0.75], psnr=31.0)
    show([honest, wrong, coarse], "")
    output = capsys.readouterr().out
    assert "3.000" in output
    assert "0.812" not in output
    assert ratio(wrong, honest) == (1 / 4 + 0.625 / 2) / 2
    assert "0.281" not in output
    assert "0.625" in output  # the median of the coarse ones


def test_images_are_rounded_as_the_program_does(tmp_path: Path) -> None:
    """GenAI truncates: its image is compared with diffusers', truncated too."""
    np.save(tmp_path / "diffusers.npy", np.float32([10.6, 20.2]))
    images = {"ldmrt": [11, 20], "optimum": [10.7, 19.8], "GenAI": [10, 20], "GenAI, float32": [11, 20]}
    levels = {}
    for name, image in images.items():
        np.save(tmp_path / f"{name}.npy", np.array(image))
        levels[name] = similarity(Contestant(name, "", Path()), tmp_path)
    assert levels == {
        "ldmrt": np.inf,
        "optimum": np.inf,
        "GenAI": np.inf,
        "GenAI, float32": pytest.approx(51.14, abs=0.01),
    }


def test_genai_begins_with_the_latents(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no argument for them, so they come from its generator of random numbers."""
    image = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(1, 16, 16, 3)
    calls: list[Any] = []

    class Pipeline:
        def __init__(self, *arguments: object, **options: object) -> None:
            calls.append((arguments, options))

        def generate(self, prompt: str, generator: Any, **arguments: object) -> SimpleNamespace:
            calls.append((prompt, arguments))
            np.testing.assert_array_equal(generator.randn_tensor([1, 4, 8, 8]), LATENTS)
            return SimpleNamespace(data=image)

    library = SimpleNamespace(Generator=object, Text2ImagePipeline=Pipeline)
    monkeypatch.setitem(sys.modules, "openvino_genai", library)
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(Tensor=np.array))
    draw = genai("exported", {**ask, "options": {"INFERENCE_NUM_THREADS": 1}})
    np.testing.assert_array_equal(draw("a pear"), image[0])
    assert calls == [(("exported", "CPU"), {"INFERENCE_NUM_THREADS": 1}), ("a pear", CALL)]


def test_optimum_intel_begins_with_the_latents(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Pipeline:
        @classmethod
        def from_pretrained(cls, *arguments: object, **options: object) -> "Pipeline":
            calls.append((arguments, options))
            return cls()

        def set_progress_bar_config(self, disable: bool) -> None:
            assert disable

        def __call__(self, prompt: str, latents: Any, output_type: str, **arguments: object) -> SimpleNamespace:
            calls.append((prompt, arguments))
            np.testing.assert_array_equal(latents.numpy(), LATENTS)
            assert output_type == "np"
            return SimpleNamespace(images=np.full((1, 16, 16, 3), 0.5, np.float32))

    intel: Any = ModuleType("optimum.intel")
    intel.OVDiffusionPipeline = Pipeline
    monkeypatch.setitem(sys.modules, "optimum", ModuleType("optimum"))
    monkeypatch.setitem(sys.modules, "optimum.intel", intel)
    draw = optimum_intel("exported", {**ask, "options": {"INFERENCE_NUM_THREADS": 1}})
    assert draw("a pear")[0, 0, 0] == 127.5  # not rounded
    options = {"export": False, "ov_config": {"INFERENCE_NUM_THREADS": 1}}
    assert calls == [(("exported",), options), ("a pear", CALL)]


def test_openvino_is_asked_for_float32_by_its_property() -> None:
    """By default it may compute in bf16, on a CPU that can."""
    contestants = openvino_contestants("python", Path("exported"), 2)
    threads, float32 = {"INFERENCE_NUM_THREADS": 2}, {"INFERENCE_PRECISION_HINT": "f32"}
    assert [(each.kind, each.name, each.options, each.least) for each in contestants] == [
        ("optimum-intel", "optimum-intel", threads, 30),
        ("optimum-intel", "optimum-intel, float32", {**threads, **float32}, 60),
        ("GenAI", "GenAI", threads, 30),
        ("GenAI", "GenAI, float32", {**threads, **float32}, 60),
    ]


Compare = Callable[..., Result]


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[Contestant]:
    """The contestants of a race that the command starts; none of them runs, and every image is 50 dB off."""
    entered: list[Contestant] = []

    def stand_in(contestants: list[Contestant], *_: object) -> None:
        entered.extend(contestants)
        for contestant in contestants:
            contestant.seconds, contestant.psnr = [1.0], 50.0

    monkeypatch.setattr(command, "race", stand_in)
    return entered


@pytest.fixture
def run(bundle: Path, checkpoint: Path, entered: list[Contestant]) -> Compare:
    return lambda *options: CliRunner().invoke(command.compare, [str(checkpoint), str(bundle), *map(str, options)])


def test_ldmrt_on_other_backends(run: Compare, entered: list[Contestant], tmp_path: Path) -> None:
    asked = ("--backend", "openvino", "--compute", "bf16", "--threads", 1, "--keep-optimized")
    done = run(*asked, "--json", tmp_path / "compare.json")
    options = {"threads": 1, "keep_optimized": True}
    assert [(each.name, each.kind, each.options, each.least) for each in entered] == [
        ("diffusers", "diffusers", {}, 60),
        ("ldmrt", "ldmrt", options, 60),
        ("ldmrt, openvino", "ldmrt", {**options, "backend": "openvino"}, 60),
        ("ldmrt, openvino bf16", "ldmrt", {**options, "backend": "openvino", "compute": "bf16"}, 30),
    ]
    assert isinstance(done.exception, LdmrtError)  # 50 dB are enough for bf16 alone
    assert done.exception.problem == "the images differ"
    assert "ldmrt, openvino >= 60 dB" in str(done.exception)
    assert "bf16" not in str(done.exception)
    rows = json.loads((tmp_path / "compare.json").read_text())["contestants"]
    assert [row["precision"] for row in rows] == ["fp32", "fp32", "fp32", "bf16"]


def test_only_some_of_the_contestants(run: Compare, entered: list[Contestant], tmp_path: Path) -> None:
    """Large models do not fit into memory together; the reference stays."""
    openvino = ("--openvino", sys.executable, "--exported-openvino", tmp_path)
    run(*openvino, "--low-memory", "--only", "GenAI, float32", "--only", "ldmrt, low memory")
    assert [each.name for each in entered] == ["diffusers", "ldmrt, low memory", "GenAI, float32"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compute", "bf16"], "--compute needs --backend"),
        (["--openvino", sys.executable], "--openvino and --exported-openvino need each other"),
        (["--only", "genai"], "no contestant is 'genai'; expected: one of diffusers, ldmrt"),
    ],
)
def test_options_that_do_not_fit(options: list[str], message: str, run: Compare, entered: list[Contestant]) -> None:
    done = run(*options)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert not entered


@pytest.mark.oracle
@pytest.mark.slow
def test_command_refuses_another_picture(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Take another scheduler than the bundle's."""
    shutil.copytree(bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "ldmrt.json").unlink()
    path = tmp_path / "bundle" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "beta_end": 0.02}))
    command = [
        sys.executable,
        "-m",
        "ldmrt.tools.benchmarks.compare",
        str(checkpoint),
        str(tmp_path / "bundle"),
        "--rounds",
        "1",
    ]
    done = subprocess.run([*command, "--steps", "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the images differ" in done.stderr
    assert "Traceback" not in done.stderr
