"""OpenVINO's networks for fixed sizes: the same results, few of them, kept beside the bundle, freed under no call."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from ldmrt.runtime import Bundle, LdmrtError
from ldmrt.runtime.backends import by_sizes, registry
from ldmrt.runtime.backends.kept_networks import FOLDER
from ldmrt.runtime.backends.openvino import engine as engine_openvino
from ldmrt.runtime.backends.openvino.engine import OpenVinoEngine
from ldmrt.runtime.backends.registry import BackendSettings
from ldmrt.runtime.backends.replaced_files import Watched
from ldmrt.runtime.parity.tolerances import tolerances

from .test_openvino import GRAPHS, ROUNDING, at_once, close, draw, engines, feeds, psnr

NETWORKS = ["text_encoder", "unet", "vae_decoder"]  # of an image of a prompt


def fixed(bundle: Path, graph: str = "unet", after: int = 1, compiled: Path | None = None) -> OpenVinoEngine:
    opened = Bundle.open(bundle, check=False)
    return OpenVinoEngine(graph, opened.model(graph), specs=opened.specs(graph), compiled=compiled, fixed_after=after)


def sizes_of_open(engine: OpenVinoEngine) -> list[list[int] | None]:
    """The first input's shape of every network that is open, as OpenVINO has it; None where it may change."""
    shapes = [network.model.inputs[0].partial_shape for network in engine._networks._opened.values()]  # type: ignore[attr-defined]
    return [list(shape.to_shape()) if shape.is_static else None for shape in shapes]


@pytest.mark.slow(minutes=0.26)
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_fixed_network_computes_what_the_other_does(graph: str, bundle: Path) -> None:
    """Both sum in float32, and with fixed sizes OpenVINO may take other kernels: as far apart as from ONNX Runtime."""
    engine, (other, ort) = fixed(bundle, graph, after=2), engines(bundle, graph)
    for batch, height, width in ((2, 16, 32), (3, 24, 16), *([(1, 16, 16)] if graph == "unet" else [])):
        inputs = feeds(other, batch, height, width)
        first, second = engine(**inputs), engine(**inputs)
        assert None not in sizes_of_open(engine)[-1:]
        close(second, first, ROUNDING)
        close(second, ort(**inputs), ROUNDING)
    assert len(sizes_of_open(engine)) == by_sizes.MOST


def test_threads_with_other_sizes_free_no_network_that_runs(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call takes the place of another's network."""
    monkeypatch.setattr(by_sizes, "MOST", 1)
    graph = "text_encoder"  # which is compiled quickly
    engine, (other, _) = fixed(bundle, graph), engines(bundle, graph)
    inputs = [feeds(other, batch) for batch in (1, 2, 3)]
    expected = [other(**one) for one in inputs]
    faults, done = list[int](), list[int]()

    def run(number: int) -> None:
        for _ in range(4):
            pairs = zip(engine(**inputs[number]).values(), expected[number].values(), strict=True)
            if any(np.abs(found - one).max() > ROUNDING * np.abs(one).max() for found, one in pairs):
                faults.append(number)
            done.append(number)

    at_once(run, len(inputs))
    assert (faults, len(done)) == ([], 12)  # no call has failed
    assert len(sizes_of_open(engine)) == 1


@pytest.mark.slow(minutes=0.07)
def test_one_fixed_network_is_kept_and_opened_first(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    folder = copy / FOLDER / "unet-content-machine"
    small, large = (feeds(engines(bundle, "unet")[0], batch) for batch in (1, 2))
    engine = fixed(copy, after=2, compiled=folder)
    expected = [engine(**inputs) for inputs in (small, small, large, large)]
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}fixed"]
    (copy / "unet" / "model.onnx").write_bytes(b"")
    again = fixed(copy, after=3, compiled=folder)
    assert sizes_of_open(again) == [list(large["sample"].shape)]  # the last that was worth it
    close(again(**large), expected[3], 0.0)
    close(again(**small), expected[0], 0.0)
    again(**small)
    with pytest.raises(LdmrtError, match="cannot open"):  # a third time is worth a network: this one was not kept
        again(**small)
    close(again(**large), expected[3], 0.0)


@pytest.mark.slow(minutes=0.06)
def test_images_are_the_same_and_kept_networks_are_used(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, least = draw(bundle), tolerances(Bundle.open(bundle))["picture"].limit
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    monkeypatch.setattr(engine_openvino, "FIXED_AFTER", 1)
    made = draw(copy, keep_optimized=True)
    assert psnr(made, expected) >= least
    kept = sorted(path.name.rpartition("-")[0].partition("-")[0] for path in (copy / FOLDER).iterdir())
    assert kept == sorted(2 * NETWORKS)
    for name in NETWORKS:
        (copy / name / "model.onnx").write_bytes(b"")
    np.testing.assert_array_equal(draw(copy, keep_optimized=True, check=False), made)


@pytest.mark.slow(minutes=0.07)
def test_a_network_that_takes_much_memory_gets_no_second_one(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_openvino, "FIXED_AFTER", 1)
    inputs = feeds(engines(bundle, "unet")[0])

    def opened(most: int, *, low_memory: bool = False) -> list[list[int] | None]:
        monkeypatch.setattr(engine_openvino, "FIXED_MOST", most)
        settings = BackendSettings(low_memory=low_memory)
        engine = registry._open_openvino(Bundle.open(bundle), "openvino", settings, "unet")
        assert isinstance(engine, OpenVinoEngine)
        engine(**inputs)
        return sizes_of_open(engine)

    weights = sum(file.stat().st_size for file in Bundle.open(bundle).weights("unet"))
    assert opened(weights) == [None, list(inputs["sample"].shape)]
    assert opened(weights - 1) == opened(weights, low_memory=True) == [list(inputs["sample"].shape)]


@pytest.mark.slow(minutes=0.05)
def test_the_first_sizes_are_compiled_for_and_other_ones_take_their_place(bundle: Path, tmp_path: Path) -> None:
    opened, folder = Bundle.open(bundle), tmp_path / "kept"
    (other, ort), paths = engines(bundle, "unet"), (opened.model("unet"), folder)

    def first() -> OpenVinoEngine:
        return OpenVinoEngine("unet", paths[0], specs=opened.specs("unet"), compiled=paths[1], fixed_first=True)

    engine, shapes = first(), []
    assert sizes_of_open(engine) == []
    for batch, height, width in ((2, 16, 32), (2, 16, 32), (1, 16, 16), (2, 16, 32)):
        inputs = feeds(other, batch, height, width)
        close(engine(**inputs), ort(**inputs), ROUNDING)
        shapes += sizes_of_open(engine)
    size = list(feeds(other, 2, 16, 32)["sample"].shape)
    assert shapes == [size, size, None, None]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "keptfixed"]
    again = first()
    close(again(**inputs), engine(**inputs), ROUNDING)  # of two kept ones that for these sizes
    assert sizes_of_open(again) == [size]


def test_a_file_that_is_replaced_is_not_compiled_for_other_sizes(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network that is open goes on; a second one of other weights would mix two models in one image."""
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    monkeypatch.setattr(engine_openvino, "FIXED_AFTER", 2)
    settings = BackendSettings(watched=Watched(copy))
    opened = Bundle.open(copy)
    engine = registry._open_openvino(opened, "openvino", settings, "unet")
    inputs = feeds(engine)
    engine(**inputs)
    file = copy / "unet" / "model.onnx_data"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(LdmrtError, match="was replaced after the bundle was opened"):
        engine(**inputs)
