"""Drawing with LoRAs in TensorRT, over a library that computes in ONNX Runtime with the weights that it was given."""

import gc
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import ldmrt.runtime
from ldmrt.runtime import LdmrtError, Pipeline

from ....support.fakes import builder, refitter
from ....support.fakes.cuda import FakeCuda
from ....support.loras import save
from ....tools.conftest import command
from .conftest import ASKED
from .test_drawing import BOTH, TWIN, draw

pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")  # of Polygraphy
SETS: list[dict[str, float]] = [{"attention": 0.8}, {"every": 0.5}, BOTH]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A GPU of straw, and a TensorRT on it."""
    return builder.install(monkeypatch)


def build(bundle: Path, to: Path, *options: str) -> Path:
    """Build engines in a copy of a bundle."""
    with pytest.MonkeyPatch.context() as patched:
        builder.install(patched)
        shutil.copytree(bundle, to)
        assert command("build", to, "--backend", "tensorrt", "--no-verify", *options) == 0
    return to


@pytest.fixture(scope="module")
def built(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle, with engines whose weights can be replaced; the fused step is among them."""
    to = tmp_path_factory.mktemp("built") / "bundle"
    return build(bundle, to, "--refit", "--folded", "--steps", "3", "--components", "text_encoder,unet,vae_decoder")


@pytest.fixture
def on_gpu(gpu: FakeCuda, built: Path, every: Path, attention: Path) -> Iterator[Pipeline]:
    """The pipeline in TensorRT, row by row."""
    with open_in_tensorrt(built, every, attention, fused=False) as pipeline:
        yield pipeline
    assert gpu.leftovers == []


def open_in_tensorrt(built: Path, every: Path, attention: Path, **options: Any) -> Pipeline:
    pipeline = ldmrt.runtime.open(built, **{"backend": "tensorrt", "check": False, **options})
    pipeline.load_lora(attention)
    pipeline.load_lora(every, name="every")
    return pipeline


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("weights", SETS, ids=str)
def test_it_draws_as_onnx_runtime(
    weights: dict[str, float], fused: bool, gpu: FakeCuda, built: Path, opened: Pipeline, every: Path, attention: Path
) -> None:
    expected = draw(opened, loras=weights)  # which equals the merged checkpoint
    with open_in_tensorrt(built, every, attention, fused=fused) as pipeline:
        found = draw(pipeline, loras=weights)
        assert np.abs(found - draw(pipeline)).max() > 0.05 * np.abs(expected).max()
    assert np.abs(found - expected).max() <= TWIN * np.abs(expected).max()
    assert gpu.leftovers == []


@pytest.mark.slow(minutes=0.05)
def test_a_set_gives_the_same_bytes_whatever_came_before(on_gpu: Pipeline) -> None:
    plain, *first = [draw(on_gpu, loras=weights).tobytes() for weights in ({}, *SETS)]
    again = [draw(on_gpu, loras=weights).tobytes() for weights in (*SETS, SETS[0], {})]
    assert again == [*first, first[0], plain]
    assert len({plain, *first}) == len(SETS) + 1


def test_a_set_that_is_not_kept_leaves_the_memory(gpu: FakeCuda, on_gpu: Pipeline) -> None:
    def held() -> int:
        return sum(len(memory) for memory in gpu.device.values())

    draw(on_gpu)
    sizes = []
    for number in range(5):
        draw(on_gpu, loras={"every": 0.1 + number / 10})
        sizes.append((held(), gpu.did["deserialised"]))
    bytes_held, loaded = zip(*sizes, strict=True)
    assert bytes_held[1] > bytes_held[0]  # two are kept
    assert set(bytes_held[2:]) == {bytes_held[1]}
    assert [b - a for a, b in pairwise(loaded)] == [2] * 4  # text encoder and U-Net of each
    draw(on_gpu, loras={"every": 0.5})
    assert gpu.did["deserialised"] == loaded[-1]
    on_gpu.unload_lora("every")
    assert held() < bytes_held[0]


@pytest.mark.slow(minutes=0.09)
def test_a_set_that_a_request_still_draws_with_stays(gpu: FakeCuda, on_gpu: Pipeline) -> None:
    expected = [draw(on_gpu, loras={"every": weight}).tobytes() for weight in (0.1, 0.2, 0.3, 0.4)]
    requests = [ldmrt.runtime.Request(**ASKED, loras={"every": weight}) for weight in (0.1, 0.2, 0.3, 0.4)]
    encoded = [on_gpu._encode(request) for request in requests]
    tasks = [on_gpu._task(each) for each in encoded]
    assert [task.last().tobytes() for task in tasks] == expected
    del tasks, encoded
    gc.collect()


def test_a_layer_that_is_fused_with_another(on_gpu: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT asks for weights that no LoRA changes; they are the bundle's."""
    asked = list[str]()
    missing = refitter.Refitter.get_missing_weights

    def counted(self: refitter.Refitter) -> list[str]:
        found = missing(self)
        asked.extend(found)
        return found

    monkeypatch.setattr(refitter.Refitter, "get_missing_weights", counted)
    draw(on_gpu, loras={"every": 0.7})
    assert any(name.endswith(".bias") for name in asked)


def test_the_fused_step_stays_where_its_network_is_not_changed(
    gpu: FakeCuda, built: Path, attention: Path, tmp_path: Path
) -> None:
    state = {key: value for key, value in load_file(attention).items() if key.startswith("lora_te")}
    with ldmrt.runtime.open(built, "tensorrt", check=False) as pipeline:
        name = pipeline.load_lora(save(state, tmp_path / "text.safetensors"))
        networks = pipeline._networks(ldmrt.runtime.Request(**ASKED, loras={name: 1.0}))
        assert networks["step"] is pipeline.engines["step"]
        assert networks["text_encoder"] is not pipeline.engines["text_encoder"]


def test_engines_that_were_built_without_it(
    gpu: FakeCuda, bundle: Path, opened: Pipeline, every: Path, attention: Path, tmp_path: Path
) -> None:
    plain = build(bundle, tmp_path / "plain", "--components", "text_encoder,unet")
    with ldmrt.runtime.open(plain, "tensorrt", check=False) as pipeline:
        with pytest.raises(LdmrtError, match="was built without --refit") as raised:
            pipeline.load_lora(attention)
        assert "ldmrt build" in str(raised.value.hint)
        assert "--refit" in str(raised.value.hint)
        assert pipeline.loras.names == ()
    expected = draw(opened, loras={"attention": 0.8})
    with ldmrt.runtime.open(plain, "auto", check=False) as pipeline:
        pipeline.load_lora(attention)
        with pytest.warns(ldmrt.runtime.LdmrtWarning, match=r"built without --refit; it runs on ONNX Runtime.*--refit"):
            found = draw(pipeline, loras={"attention": 0.8})
    assert found.tobytes() == expected.tobytes()
    assert gpu.leftovers == []


def test_auto_takes_the_engines(gpu: FakeCuda, built: Path, on_gpu: Pipeline, every: Path, attention: Path) -> None:
    expected = draw(on_gpu, loras=BOTH)
    with open_in_tensorrt(built, every, attention, backend="auto", fused=False) as pipeline:
        assert draw(pipeline, loras=BOTH).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("name", "answer", "problem"),
    [
        ("get_all_weights", lambda self: ["conv_in.bias"], "it has no weights of"),
        ("get_missing_weights", lambda self: ["fused"], "it wants weights fused, which the graph does not have"),
        ("set_named_weights", lambda self, name, weights: False, "set_named_weights of"),
        ("refit_cuda_engine", lambda self: False, "refit_cuda_engine failed"),
    ],
)
def test_tensorrt_refuses(
    name: str, answer: Any, problem: str, on_gpu: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = draw(on_gpu, loras={"every": 0.5})
    with monkeypatch.context() as patched:
        patched.setattr(refitter.Refitter, name, answer)
        with pytest.raises(LdmrtError, match="takes no other weights") as raised:
            draw(on_gpu, loras={"every": 0.6})
    assert problem in str(raised.value.found)
    assert draw(on_gpu, loras={"every": 0.5}).tobytes() == before.tobytes()
    assert draw(on_gpu, loras={"every": 0.6}).tobytes() != before.tobytes()  # a second try loads a new engine


def test_tensorrt_rtx_refuses(monkeypatch: pytest.MonkeyPatch, bundle: Path, attention: Path, tmp_path: Path) -> None:
    builder.install(monkeypatch, "tensorrt-rtx")
    with (
        ldmrt.runtime.open(bundle, "tensorrt-rtx", check=False) as pipeline,
        pytest.raises(LdmrtError, match="TensorRT-RTX compiles an engine with its weights"),
    ):
        pipeline.load_lora(attention)
