"""Half precision where it holds, float32 where it does not."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldmrt.export.bundle_writer import export_bundle
from ldmrt.export.components.table import components, example
from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.export.graph.to_onnx import to_onnx
from ldmrt.export.precision.casting import modules_of
from ldmrt.export.precision.islands import HALF, LIMIT, record_ranges, smallest_safe_module
from ldmrt.export.precision.policy import apply_precisions, choose_precisions, islands, parse, precisions
from ldmrt.model import Checkpoint, load
from ldmrt.runtime import Bundle, LdmrtError
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.backends.ort.engine import OrtEngine
from ldmrt.runtime.parity.metrics import psnr
from ldmrt.runtime.parity.tolerances import COMPONENT

PROMPT = "two pears"
Load = Callable[[Mapping[str, torch.dtype]], tuple[Checkpoint, dict[str, Any]]]


def reading(checkpoint: Path) -> Load:
    return lambda dtype: (load(checkpoint, dtype=dtype), {})


@pytest.fixture(scope="module")
def loud(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in which one convolution gives more than a half holds; the norm after it takes it back."""
    folder = tmp_path_factory.mktemp("loud") / "checkpoint"
    tiny = load(checkpoint)
    with torch.no_grad():
        tiny.unet.mid_block.resnets[0].conv1.weight *= 2e5
        tiny.vae.decoder.mid_block.resnets[1].conv1.weight *= 2e5
    tiny.save(folder)
    return folder


def test_parse() -> None:
    assert parse("fp16") == {"": "fp16"}
    assert parse("unet=fp16, vae_decoder=fp32") == {"": "fp32", "unet": "fp16", "vae_decoder": "fp32"}
    assert parse("fp16,vae_decoder=fp32") == {"": "fp16", "vae_decoder": "fp32"}


@pytest.mark.parametrize("text", ["fp8", "", "unet=", "=fp16", "unet=fp16,", "unet:fp16"])
def test_impossible_precisions(text: str) -> None:
    with pytest.raises(LdmrtError, match="invalid precision"):
        parse(text)


def test_a_quiet_model_has_no_islands(checkpoint: Path) -> None:
    loaded, _, found = choose_precisions(reading(checkpoint), {"": "fp16"})
    assert found == {}
    assert {one.precision for one in components(loaded).values()} == {"fp16"}
    assert {one.dtype for network in loaded.networks.values() for one in network.parameters()} == {torch.float16}


def test_ranges_are_those_of_float32(checkpoint: Path) -> None:
    """Measured on halves that compute in float32, against hooks on the wide network."""
    half, whole = (components(load(checkpoint, dtype=dtype))["unet"].module for dtype in (torch.float16, torch.float32))
    rng = torch.Generator().manual_seed(0)
    x, words = torch.randn(1, 4, 8, 8, generator=rng), torch.randn(1, 16, 24, generator=rng)
    expected: dict[str, float] = {}
    for name, module in modules_of(whole).items():
        module.register_forward_hook(lambda _, __, out, name=name: expected.update({name: _largest(out)}))
    with torch.no_grad(), record_ranges(half) as ranges:
        half(x.half(), torch.tensor([500.0]), words.half())
    with torch.no_grad():
        whole(x, torch.tensor([500.0]), words)
    assert ranges.keys() == expected.keys()
    for name, value in expected.items():
        assert math.isclose(ranges[name], value, rel_tol=1e-2), name  # the weights were rounded to 11 bits
    assert {one.dtype for one in half.parameters()} == {torch.float16}  # as before


def _largest(out: Any) -> float:
    tensor = out[0] if isinstance(out, tuple) else out
    return float(tensor.abs().max())


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ({"a.b": 1.0, "a": 2.0, "": 3.0}, []),
        ({"a.b": LIMIT * 1.01, "a": 2.0, "": 3.0}, ["a"]),
        ({"a.b.c": math.inf, "a.b": HALF, "a": 2.0, "": 3.0}, ["a"]),
        ({"a.b.c": HALF, "a": HALF, "": 3.0}, [""]),  # a.b is never called
        ({"a.b": HALF, "a": 1.0, "c.d": HALF, "c": 1.0, "": 3.0}, ["a", "c"]),
        ({"a.b": HALF, "a": 1.0, "": HALF}, [""]),
    ],
)
def test_climb(ranges: dict[str, float], expected: list[str]) -> None:
    assert list(smallest_safe_module(ranges, LIMIT)) == expected


@pytest.mark.slow(minutes=0.05)
def test_islands_appear_and_the_picture_survives(loud: Path, tmp_path: Path, exported: list[str]) -> None:
    loaded, _, found = choose_precisions(reading(loud), {"": "fp16"})
    assert {name: list(modules) for name, modules in found.items()} == {
        "unet": ["mid_block.resnets.0"],
        "vae_decoder": ["decoder.mid_block.resnets.1"],
    }
    assert "mid_block.resnets.0.conv1 reaches" in found["unet"]["mid_block.resnets.0"]
    wide = {name for name, one in loaded.unet.named_parameters() if one.dtype == torch.float32}
    assert wide
    assert all(name.startswith("mid_block.resnets.0.") for name in wide)
    for _ in export_bundle(loaded, tmp_path / "half", islands=found):
        pass
    half, whole = (torch_pipeline(model)(PROMPT, num_inference_steps=4).pixels for model in (loaded, load(loud)))
    assert psnr(half, whole) >= 40.0  # an RMS error of two and a half grey levels
    opened = Bundle.open(tmp_path / "half")
    assert islands(opened) == found
    again, _ = apply_precisions(reading(loud), precisions(opened), islands(opened))
    for one, other in zip(again.unet.parameters(), loaded.unet.parameters(), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.slow(minutes=0.11)
def test_an_exported_island_computes_what_pytorch_does(loud: Path, tmp_path: Path) -> None:
    """The decoder, in whose halves alone nothing finite is left."""
    loaded, _, _ = choose_precisions(reading(loud), {"": "fp16"})
    half, whole = (components(model)["vae_decoder"] for model in (loaded, load(loud)))
    exported = OrtEngine("vae_decoder", to_onnx(half, tmp_path / "vae_decoder"))
    inputs = example(whole, {"batch": 2, "height": 16, "width": 16})
    (found,), (expected,) = (engine(**inputs).values() for engine in (exported, whole.engine()))
    exported.close()
    assert np.abs(found - expected).max() <= COMPONENT["fp16"].limit * np.abs(expected).max()


@pytest.mark.slow  # two exports; what they are made of is above
def test_the_image_survives_on_onnx_runtime(loud: Path, tmp_path: Path) -> None:
    loaded, _, found = choose_precisions(reading(loud), {"": "fp16"})
    for _ in export_bundle(loaded, tmp_path / "half", islands=found):
        pass
    for _ in export_bundle(load(loud), tmp_path / "whole"):
        pass
    half, whole = (drawn(tmp_path / name) for name in ("half", "whole"))
    assert psnr(half, whole) >= 40.0  # an RMS error of two and a half grey levels


@pytest.mark.slow(minutes=0.05)
def test_without_the_island_the_guard_fires(loud: Path) -> None:
    """On PyTorch: ONNX Runtime has no halves on a CPU, and computes whole chains of them in float32."""
    pipeline = torch_pipeline(load(loud, dtype=torch.float16))
    with pytest.raises(LdmrtError, match="unet: latents are not finite after row 0"):
        pipeline(PROMPT, num_inference_steps=4)
    loaded, _, _ = choose_precisions(reading(loud), {"": "fp16"})
    assert np.isfinite(torch_pipeline(loaded)(PROMPT, num_inference_steps=4).latents).all()


def drawn(bundle: Path) -> np.ndarray:
    pipeline = open_pipeline(bundle, check=False)
    images = pipeline(PROMPT, num_inference_steps=4).pixels
    pipeline.close()
    return images


@pytest.mark.slow(minutes=0.05)
def test_what_is_loud_at_its_end_stays_wide(checkpoint: Path, tmp_path: Path) -> None:
    """A decoder whose own result is out of reach: all of it is float32, with the weights of the file."""
    tiny = load(checkpoint)
    with torch.no_grad():
        tiny.vae.decoder.conv_out.bias += 4e4
    tiny.save(tmp_path)
    loaded, _, found = choose_precisions(reading(tmp_path), {"": "fp16"})
    assert list(found["vae_decoder"]) == [""]
    assert components(loaded)["vae_decoder"].precision == "fp32"
    assert torch.equal(loaded.vae.decoder.conv_in.weight, tiny.vae.decoder.conv_in.weight)


@pytest.mark.slow(minutes=0.06)
def test_one_component_in_halves(checkpoint: Path, tmp_path: Path) -> None:
    loaded, _, _ = choose_precisions(reading(checkpoint), parse("unet=fp16"))
    kinds = {name: part.precision for name, part in components(loaded).items()}
    assert kinds == {"text_encoder": "fp32", "unet": "fp16", "vae_decoder": "fp32", "vae_encoder": "fp32"}
    loaded, _, _ = choose_precisions(reading(checkpoint), parse("fp16,vae_decoder=fp32"))
    kinds = {name: part.precision for name, part in components(loaded).items()}
    assert kinds == {"text_encoder": "fp16", "unet": "fp16", "vae_decoder": "fp32", "vae_encoder": "fp16"}
    assert torch.equal(loaded.vae.decoder.conv_in.weight, load(checkpoint).vae.decoder.conv_in.weight)
    with pytest.raises(LdmrtError, match="no component 'vea'"):
        choose_precisions(reading(checkpoint), parse("vea=fp16"))
