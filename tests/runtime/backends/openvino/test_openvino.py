"""OpenVINO: every graph computes what ONNX Runtime does, images are the same, and what cannot be is refused."""

import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ldmrt.runtime
from ldmrt.runtime import Bundle, LdmrtError
from ldmrt.runtime.backends.kept_networks import FOLDER, LIST
from ldmrt.runtime.backends.openvino.engine import OpenVinoEngine
from ldmrt.runtime.backends.openvino.network import COMPILED
from ldmrt.runtime.backends.ort.engine import OrtEngine
from ldmrt.runtime.bundle.graphs import STEP
from ldmrt.runtime.parity.metrics import psnr
from ldmrt.runtime.parity.tolerances import COMPONENT, tolerances
from ldmrt.runtime.tensors import Arrays, shape_of

ASKED: dict[str, Any] = {
    "prompt": "a red apple",
    "num_inference_steps": 3,
    "guidance_scale": 4.0,
    "num_images_per_prompt": 2,
}
SIZES = {"rows": 3, "saved": 3, "terms": 5, "draws": 3}  # of the fused step
ROUNDING = 5e-6  # relative: two libraries take sums of float32 in another order; 1.5e-6 at most was measured
GRAPHS = ("text_encoder", "unet", "vae_decoder", "vae_encoder", "vae_decoder_front", "vae_decoder_tile",
          "vae_encoder_tile", "vae_encoder_back", STEP)  # fmt: skip


def feeds(engine: Any, batch: int = 2, height: int = 16, width: int = 32) -> Arrays:
    """Inputs of a size, at random, but for those that mean something."""
    sizes = {**SIZES, "batch": batch, "timesteps": batch, "calls": 2 * batch, "height": height, "width": width}
    random, arrays = np.random.default_rng(0), {}
    for spec in engine.inputs:
        shape = shape_of(spec, sizes)
        array = random.integers(0, min(batch, 2), shape) if "int" in spec.dtype else random.standard_normal(shape)
        fixed = {"variance": np.abs(array), "share": np.ones(shape), "own": np.zeros(shape)}  # of an autoencoder's tile
        arrays[spec.name] = fixed.get(spec.name, array).astype(spec.dtype)
    return arrays


def engines(bundle: Path, graph: str) -> tuple[OpenVinoEngine, OrtEngine]:
    opened = Bundle.open(bundle)
    path = opened.model(graph)
    return OpenVinoEngine(graph, path, specs=opened.specs(graph)), OrtEngine(graph, path)


def close(found: Arrays, expected: Arrays, limit: float) -> None:
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        assert (found[name].dtype, found[name].shape) == (one.dtype, one.shape)
        size = np.abs(one.astype(float)).max()
        assert np.abs(found[name].astype(float) - one).max() <= limit * size, name


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graph_computes_what_it_does_in_onnx_runtime(graph: str, bundle: Path) -> None:
    """For several sizes and batches in turn, each time with other arrays for the results."""
    engine, ort = engines(bundle, graph)
    results = []
    for batch, height, width in ((2, 16, 32), (1, 16, 16), (3, 24, 16), (2, 16, 32)):
        inputs = feeds(engine, batch, height, width)
        results.append((engine(**inputs), ort(**inputs)))
    for found, expected in results:  # after all runs: none wrote into the results of another
        close(found, expected, ROUNDING)


def draw(bundle: Path, backend: str = "openvino", request: dict[str, Any] = ASKED, **how: Any) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no certificate
        with ldmrt.runtime.open(bundle, backend, **how) as pipeline:
            pixels: np.ndarray = pipeline(**request).pixels
    return pixels


@pytest.mark.parametrize(
    "how", [{}, {"low_memory": True}, {"threads": 1}, {"tile": 8}], ids=["plain", "low memory", "threads", "tiles"]
)
def test_images_are_those_of_onnx_runtime(bundle: Path, how: dict[str, Any]) -> None:
    expected = draw(bundle, "onnxruntime", **how)
    assert psnr(draw(bundle, **how), expected) >= tolerances(Bundle.open(bundle))["picture"].limit


@pytest.mark.slow(minutes=0.05)
def test_image_to_image_and_inpainting(bundle: Path) -> None:
    image = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12] = 255
    for task in ({"image": image, "strength": 0.7}, {"image": image, "mask_image": mask, "strength": 1.0}):
        expected = draw(bundle, "onnxruntime", {**ASKED, **task})
        assert psnr(draw(bundle, request={**ASKED, **task}), expected) >= 60.0  # as `tolerances` asks of float32


@pytest.mark.oracle
def test_half_precision_is_computed_in_float32(half_unet: tuple[Path, Any]) -> None:
    """Its weights and its ends are rounded to 11 bits, nothing between."""
    path, wide = half_unet
    engine = OpenVinoEngine("unet", path)
    inputs = {
        "sample": np.ones((2, 4, 8, 8)),
        "timestep": np.full(2, 500.0),
        "encoder_hidden_states": np.ones((2, 16, 24)),
    }
    (found,), (expected,) = engine(**inputs).values(), wide(**inputs).values()
    assert found.dtype == np.float16
    assert np.abs(found - expected).max() <= COMPONENT["fp16"].limit / 5 * np.abs(expected).max()


@pytest.fixture(scope="module")
def half_unet(checkpoint: Path, export_once: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The tiny U-Net exported in float16, and PyTorch's in float32."""
    import torch

    from ldmrt.export.components.table import components
    from ldmrt.model import load

    half, wide = (components(load(checkpoint, dtype=dtype))["unet"] for dtype in (torch.float16, torch.float32))
    return export_once(half, tmp_path_factory.mktemp("half") / "unet"), wide.engine()


def test_without_a_manifest_names_and_results_are_the_graphs(bundle: Path) -> None:
    for graph in ("text_encoder", "unet"):
        known, _ = engines(bundle, graph)
        alone = OpenVinoEngine(graph, Bundle.open(bundle).model(graph))
        assert [spec.name for spec in alone.inputs] == [spec.name for spec in known.inputs]
        assert [(spec.name, spec.dtype) for spec in alone.outputs] == [
            (spec.name, spec.dtype) for spec in known.outputs
        ]
        close(alone(**feeds(known)), known(**feeds(known)), 0.0)


def at_once(run: Callable[[int], None], count: int) -> None:
    """Run a function in so many threads, with their numbers."""
    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_share_an_engine(bundle: Path) -> None:
    engine, _ = engines(bundle, "unet")
    inputs = [feeds(engine, batch) for batch in (1, 2, 3, 4)]
    expected = [engine(**one) for one in inputs]
    faults = []

    def run(number: int) -> None:
        for _ in range(10):
            found = engine(**inputs[number])
            if any(not np.array_equal(found[name], one) for name, one in expected[number].items()):
                faults.append(number)

    at_once(run, len(inputs))
    assert faults == []


CLOSED = """
import sys, threading, numpy as np
from pathlib import Path
from ldmrt.runtime import Bundle, LdmrtError
from ldmrt.runtime.backends.openvino.engine import OpenVinoEngine
opened = Bundle.open(Path(sys.argv[1]))
kept = opened.path / "optimized/x-y-z"
for _ in range(2):  # the second reads its weights from the file of the first
    engine = OpenVinoEngine("unet", opened.model("unet"), specs=opened.specs("unet"), compiled=kept)
shapes = {"sample": (2, 4, 64, 64), "timestep": (2,), "encoder_hidden_states": (2, 16, 24)}
inputs = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
begun, faults = threading.Event(), []
def run():
    while True:
        begun.set()
        try:
            engine(**inputs)
        except LdmrtError as error:
            return faults.append(error.problem)
threads = [threading.Thread(target=run) for _ in range(2)]
[thread.start() for thread in threads]
begun.wait()
engine.close()
[thread.join() for thread in threads]
print(faults)
"""


def test_closing_waits_for_no_call_and_breaks_none(bundle: Path, tmp_path: Path) -> None:
    """Also of a network whose weights are mapped into memory, in a process of its own: a fault would end it."""
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    ran = subprocess.run([sys.executable, "-c", CLOSED, str(copy)], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.strip(), ran.stderr) == (0, str(["its pipeline is closed"] * 2), "")


def test_sizes_that_are_rounded_and_outputs_that_are_not_as_stated(bundle: Path) -> None:
    engine, ort = engines(bundle, "vae_encoder")
    for side in (16, 17, 16, 19):
        inputs = {"sample": np.random.default_rng(side).standard_normal((1, 3, side, side)).astype(np.float32)}
        close(engine(**inputs), ort(**inputs), ROUNDING)
    known = Bundle.open(bundle).specs("vae_encoder")
    (output,) = known[1]
    shapes = ("batch", 8, "height", "width"), ("batch", 8, "height/4", "width/4")
    for shape, threads in product(shapes, (1, 2)):  # with one thread, OpenVINO's `infer` would report nothing
        wrong = known[0], (replace(output, shape=shape),)
        lying = OpenVinoEngine("vae_encoder", Bundle.open(bundle).model("vae_encoder"), specs=wrong, threads=threads)
        with pytest.raises(LdmrtError, match=r"vae_encoder: (wrong shape of latent_parameters|OpenVINO failed)"):
            lying(sample=np.ones((1, 3, 16, 16)))
    unknown = known[0], (replace(output, shape=("batch", 8, "rows", "columns")),)
    odd = OpenVinoEngine("vae_encoder", Bundle.open(bundle).model("vae_encoder"), specs=unknown)
    close(odd(sample=np.ones((1, 3, 16, 16))), ort(sample=np.ones((1, 3, 16, 16))), ROUNDING)


def test_arrays_that_cannot_be_written_or_are_not_in_order(bundle: Path) -> None:
    engine, ort = engines(bundle, "unet")
    inputs = feeds(engine)
    inputs["sample"].flags.writeable = False
    inputs["encoder_hidden_states"] = np.asfortranarray(inputs["encoder_hidden_states"])
    inputs["timestep"] = np.broadcast_to(inputs["timestep"][:1], 2)
    expected = ort(**inputs)
    close(engine(**inputs), expected, ROUNDING)


@pytest.mark.slow(minutes=0.07)
def test_what_was_compiled_is_kept(bundle: Path, tmp_path: Path) -> None:
    """Once it is, the graphs are not read any more; a damaged file is made anew."""
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    expected = draw(bundle)
    np.testing.assert_array_equal(draw(copy, keep_optimized=True), expected)
    folders = sorted((copy / FOLDER).iterdir())
    assert [folder.name.partition("-")[0] for folder in folders] == ["text_encoder", "unet", "vae_decoder"]
    assert all({file.name for file in folder.iterdir()} == {COMPILED, LIST} for folder in folders)
    whole = {name: (copy / name / "model.onnx").read_bytes() for name in ("text_encoder", "unet", "vae_decoder")}
    for name in whole:
        (copy / name / "model.onnx").write_bytes(b"")
    np.testing.assert_array_equal(draw(copy, keep_optimized=True, check=False), expected)
    for name, content in whole.items():
        (copy / name / "model.onnx").write_bytes(content)
    for harm in (b"", (folders[1] / COMPILED).read_bytes()[:-1] + b"x"):
        (folders[1] / COMPILED).write_bytes(harm)
        np.testing.assert_array_equal(draw(copy, keep_optimized=True), expected)


def test_errors_are_one_line_and_nothing_is_printed(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for content in (b"", b"no graph", (bundle / "unet" / "model.onnx").read_bytes()[:-1000]):
        copy = Path(shutil.copytree(bundle / "unet", tmp_path / str(len(content))))
        (copy / "model.onnx").write_bytes(content)
        with pytest.raises(LdmrtError, match=r"unet: OpenVINO cannot open .*model\.onnx.*; found (?!Exception|Check)"):
            OpenVinoEngine("unet", copy / "model.onnx")
    engine, _ = engines(bundle, "unet")
    inputs = feeds(engine)
    with pytest.raises(LdmrtError, match="wrong shape of sample"):
        engine(**{**inputs, "sample": inputs["sample"][0]})
    with pytest.raises(LdmrtError, match=r"wrong shape of encoder_hidden_states; expected .* with batch 2, as in"):
        engine(**{**inputs, "encoder_hidden_states": inputs["encoder_hidden_states"][:1].repeat(3, 0)})
    close(engine(**inputs), engine(**inputs), 0.0)  # it goes on after a failure
    engine.close()
    with pytest.raises(LdmrtError, match="its pipeline is closed"):
        engine(**inputs)
    assert capfd.readouterr() == ("", "")
