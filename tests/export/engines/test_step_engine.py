"""Engines of the folded step, from the words of `ldmrt build` to a picture: on a GPU and a TensorRT of straw, which
compute by ONNX Runtime. What is launched, copied and waited for can be seen without a GPU.
"""

import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldmrt.export.engines.profiles import Wanted, recipes
from ldmrt.runtime import SCHEDULERS, LdmrtWarning, Pipeline, Request, plan_from_config
from ldmrt.runtime import open as open_bundle
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.store import FOLDER, write_engine
from ldmrt.runtime.bundle.graphs import STEP, STEPS, most_rows, steps_of
from ldmrt.runtime.pipeline.denoising.fused_step import StepCapacity
from ldmrt.tools.benchmarks import gpu_rows

from ...support.fakes import tensorrt
from ...support.fakes.cuda import FakeCuda

# Relative to the largest latent: the same float32 numbers, added up in another order, through all rows.
TOLERANCE = 1e-5
MOST = 10  # steps
BACKEND = "tensorrt-rtx"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """An sm89 with TensorRT-RTX; TensorRT is not there."""
    made = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings", type("bindings", (), {"runtime": made}))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", tensorrt.library(made, BACKEND))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr("ldmrt.runtime.backends.trt.session.compute_capability", lambda: "sm89")
    return made


@pytest.fixture
def built(bundle: Path, tmp_path: Path) -> Path:
    """The tiny bundle with what stands for engines of its components and of the folded step."""
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    put(folder, bundle, Bundle.open(folder, check=False).graphs)
    return folder


def put(folder: Path, bundle: Path, graphs: tuple[str, ...], version: str = tensorrt.VERSION, **changes: Any) -> None:
    """They compute the files of `bundle`, which are opened once for all tests."""
    opened, source = Bundle.open(folder, check=False), Bundle.open(bundle, check=False)
    wanted = Wanted.read("16x16", "1-2", "any", 16, MOST)
    for one in recipes(opened, wanted, backend=BACKEND, version=version, targets=["sm89"], graphs=graphs):
        onnx = str(source.model(one.component))
        write_engine(folder / FOLDER, one, tensorrt.plan(list(one.profile), onnx=onnx, **changes), {})


def asked(**changes: Any) -> dict[str, Any]:
    return {
        "prompt": "a red apple",
        "num_inference_steps": 3,
        "num_images_per_prompt": 2,
        "seed": 3,
        "scheduler": "dpmpp_2m",
    } | changes


def off(found: Any, expected: Any) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture
def plain(bundle: Path) -> Iterator[Pipeline]:
    """The loop, on ONNX Runtime."""
    made = open_bundle(bundle, "onnxruntime", check=False)
    yield made
    made.close()


@pytest.fixture
def quiet() -> Iterator[None]:
    """Nothing is warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", LdmrtWarning)
        yield


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("backend", ["auto", BACKEND])
def test_a_picture_is_launches_of_one_recorded_graph(built: Path, gpu: FakeCuda, plain: Pipeline, backend: str) -> None:
    """Of any sampler that draws no noise and any number of steps: what goes up goes up once, the latents come down
    once, and there is one wait.
    """
    pipeline = open_bundle(built, backend, check=False)
    recorded = 0
    for name, steps in (("dpmpp_2m", 4), ("unipc", 3), ("heun", 5), ("lms", 2)):
        task = pipeline.prepare(Request(**asked(scheduler=name, num_inference_steps=steps)))
        assert task.fused is not None
        inputs = len(task.fused.engine.inputs)  # type: ignore[attr-defined]
        gpu.did.clear()
        x = task.last()
        assert (gpu.did["cudaEventSynchronize"], gpu.did["ran"]) == (1, task.plan.rows)
        first = name == "dpmpp_2m"  # for more scratch memory than the text encoder had
        assert gpu.did["cudaStreamSynchronize"] == first
        assert (gpu.did["copy HostToDevice"], gpu.did["copy DeviceToHost"]) == (inputs, 1)
        assert gpu.did["cudaGraphLaunch"] == task.plan.rows - (name == "dpmpp_2m")  # the very first runs as it is
        recorded += gpu.did["cudaStreamBeginCapture"]
        assert off(x, plain.prepare(Request(**asked(scheduler=name, num_inference_steps=steps))).last()) < TOLERANCE
    assert recorded == 1
    pipeline.close()
    assert gpu.leftovers == []


@pytest.mark.usefixtures("quiet")
def test_samplers_that_draw_share_a_second_graph(built: Path, gpu: FakeCuda, plain: Pipeline) -> None:
    """The noise of all rows goes up with the rest."""
    pipeline = open_bundle(built, BACKEND, check=False)
    recorded = 0
    for name, steps in (("euler_a", 4), ("dpmpp_sde", 3), ("lcm", 2)):
        task = pipeline.prepare(Request(**asked(scheduler=name, num_inference_steps=steps)))
        gpu.did.clear()
        x = task.last()
        recorded += gpu.did["cudaStreamBeginCapture"]
        assert off(x, plain.prepare(Request(**asked(scheduler=name, num_inference_steps=steps))).last()) < TOLERANCE
    assert recorded == 1
    pipeline.close()


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    "changes",
    [{"num_images_per_prompt": 1}, {"guidance_scale": 1.0}, {"scheduler": "lcm", "num_inference_steps": 1}],
    ids=str,
)
@pytest.mark.parametrize("low_memory", [False, True])
def test_whole_pictures(built: Path, gpu: FakeCuda, plain: Pipeline, changes: dict[str, Any], low_memory: bool) -> None:
    """And every row that is looked at on the way."""
    pipeline = open_bundle(built, BACKEND, check=False, low_memory=low_memory)
    found, expected = (one(**asked(**changes)) for one in (pipeline, plain))
    np.testing.assert_allclose(found.pixels.astype(int), expected.pixels, atol=1)  # a rounding apart
    for one, other in zip(
        pipeline.steps(Request(**asked(**changes))), plain.steps(Request(**asked(**changes))), strict=True
    ):
        assert off(one.x, other.x) < TOLERANCE
        assert off(one.x0, other.x0) < TOLERANCE
    pipeline.close()
    assert gpu.leftovers == []


@pytest.mark.usefixtures("quiet")
def test_two_that_are_walked_in_turns(built: Path, gpu: FakeCuda, plain: Pipeline) -> None:
    """They share buffers on the GPU, and each finds its own latents there."""
    pipeline, words = open_bundle(built, BACKEND, check=False), (asked(), asked(seed=9, scheduler="ddim"))
    pairs = zip(
        *(pipeline.steps(Request(**one)) for one in words), *(plain.steps(Request(**one)) for one in words), strict=True
    )
    for one, other, expected, too in pairs:
        assert off(one.x, expected.x) < TOLERANCE
        assert off(other.x, too.x) < TOLERANCE
    pipeline.close()


@pytest.mark.usefixtures("quiet")
def test_many_requests_overlap_on_one_stream(built: Path, gpu: FakeCuda, plain: Pipeline) -> None:
    """Of three threads, some in the loop, of more shapes than one: each finds its own numbers."""
    many = [
        Request(**asked(seed=seed, num_images_per_prompt=1 + seed % 2, **changes))
        for seed in range(4)
        for changes in (
            {},
            {"guidance_rescale": 0.5},
            {"scheduler": "euler_a", "num_inference_steps": 4},
            {"guidance_scale": 1.0},
        )
    ]
    pipeline = open_bundle(built, BACKEND, check=False)
    for found, request in zip(pipeline.draw(many), many, strict=True):
        expected = plain(request)
        assert off(found.latents, expected.latents) < TOLERANCE
        np.testing.assert_allclose(found.pixels.astype(int), expected.pixels, atol=1)  # a rounding apart
    pipeline.close()
    assert gpu.leftovers == []


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("changes", [{"guidance_rescale": 0.5}, {"guidance_interval": (0.5, 2.0)}], ids=str)
def test_what_is_not_linear_runs_on_the_unets_engine(
    built: Path, gpu: FakeCuda, plain: Pipeline, changes: dict[str, Any]
) -> None:
    pipeline = open_bundle(built, BACKEND, check=False)
    task = pipeline.prepare(Request(**asked(**changes)))
    assert task.fused is None
    assert off(task.last(), plain.prepare(Request(**asked(**changes))).last()) < TOLERANCE
    pipeline.close()


@pytest.mark.usefixtures("quiet")
def test_it_can_be_left_out(built: Path, gpu: FakeCuda) -> None:
    pipeline = open_bundle(built, BACKEND, check=False, fused=False)
    assert pipeline.prepare(Request(**asked())).fused is None
    pipeline.close()


@pytest.mark.parametrize("backend", ["auto", BACKEND])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_inference_steps": 15, "scheduler": "heun"},
            r"takes 1-2x1-28x1-6x3-8, not 2x29x2x4 as table; .* --folded --steps 50$",
        ),
        (
            {"num_images_per_prompt": 3},
            r"takes 1-2x1-6x4x8x8, not 3x2x4x8x8 as state; .* --batch 3 --folded --steps 50$",
        ),
        (
            {"num_images_per_prompt": 3, "guidance_scale": 1.0},
            r"not 3x2x4x8x8 as state; .* --batch 3 --guidance off --folded --steps 50$",
        ),
    ],
    ids=str,
)
def test_what_it_does_not_hold_runs_in_the_loop(
    built: Path, gpu: FakeCuda, plain: Pipeline, backend: str, changes: dict[str, Any], message: str
) -> None:
    """That is known before anything runs, and said with the command that builds what would hold it."""
    pipeline = open_bundle(built, backend, check=False)
    with pytest.warns(
        LdmrtWarning, match=r"step: engine step-sm89-\w+ .*the rows run one by one; next: ldmrt build"
    ) as said:
        task = pipeline.prepare(Request(**asked(**changes)))
    assert task.fused is None
    assert [re.search(message, str(one.message)) is None for one in said] == [False]
    if "steps" in changes:
        gpu.did.clear()
        assert off(task.last(), plain.prepare(Request(**asked(**changes))).last()) < TOLERANCE
        assert gpu.did["ran"] == task.plan.rows  # on the U-Net's engine
    pipeline.close()


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (None, "no engine for TensorRT-RTX 1.2.3 on sm89"),
        ({"version": "1.0"}, r"step-sm89-\w+ was made by TensorRT-RTX 1.0, not 1.2.3"),
        ({"broken": True}, "cannot be loaded"),
    ],
    ids=str,
)
def test_one_that_cannot_be_had_is_said(
    bundle: Path, built: Path, gpu: FakeCuda, plain: Pipeline, there: dict[str, Any] | None, message: str
) -> None:
    """And the loop runs."""
    for folder in (built / FOLDER).glob(f"{STEP}-*"):
        shutil.rmtree(folder)
    if there is not None:
        put(built, bundle, (STEP,), **there)
    pipeline = open_bundle(built, BACKEND, check=False, fused=None if there else True)
    with pytest.warns(LdmrtWarning, match=rf"step: .*{message}.*; the rows run one by one; next: "):
        task = pipeline.prepare(Request(**asked()))
    assert off(task.last(), plain.prepare(Request(**asked())).last()) < TOLERANCE
    pipeline.close()
    assert gpu.leftovers == []


@pytest.mark.usefixtures("quiet")
def test_the_check_of_a_gpu_measures_it(built: Path, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_rows, "engines", lambda *_, **__: 1.5)
    monkeypatch.setattr(gpu_rows, "REPEATS", 1)
    values = gpu_rows.fused(gpu_rows.Setting("tiny", "cuda", 3, built.parent), BACKEND)
    assert values.pop("off") < TOLERANCE
    assert values.pop("build_s") == 1.5
    assert min(values.pop("rows_per_s"), values.pop("seconds")) > 0
    assert values == {}
    assert gpu.leftovers == []


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 50])
def test_every_sampler_fits(steps: int) -> None:
    """An engine for so many steps holds the plan of each, of the highest orders and with every start."""
    config = {"beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
    (bucket,) = step_profile(steps)
    for name in SCHEDULERS:
        if name == "pndm" and steps < 4:
            continue  # too few for Runge-Kutta
        for changes in ({}, {"solver_order": 3}, {"skip_prk_steps": False}):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                own = {**config, **changes, "_class_name": SCHEDULERS[name].class_name}
                own["correct_steps"] = 0  # a corrector is never a part of the step
                capacity = StepCapacity.of([plan_from_config(own, steps, name=name)])
            shapes = capacity.shapes((1, 4, 8, 8), 2)
            assert [key for key, shape in shapes.items() if not bucket[key].holds(shape)] == [], name


def step_profile(steps: int) -> Any:
    from ldmrt.export.engines.profiles import profile
    from ldmrt.runtime.bundle.graphs import step_specs
    from ldmrt.runtime.tensors import TensorSpec

    sample = TensorSpec("sample", "float32", ("batch", 4, "height/8", "width/8"))
    made = step_specs((sample, TensorSpec("timestep", "float32", ("timesteps",))), (sample,))
    assert made is not None
    return profile(STEP, made[0], Wanted.read("64x64", "1", "on", 64, steps))


def test_round_numbers_of_steps() -> None:
    for rows in (1, 20, most_rows(STEPS), most_rows(STEPS) + 1, 999):
        steps = steps_of(rows)
        assert steps % STEPS == 0
        assert most_rows(steps) >= rows > (most_rows(steps - STEPS) if steps > STEPS else 0)
