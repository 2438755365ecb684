"""What the precisions cost: halves and bfloat16 against float32, and islands where a module errs too much."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from ldmrt.export.bundle_writer import export_bundle
from ldmrt.export.components.table import Component, components, example
from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.export.graph.to_onnx import to_onnx
from ldmrt.export.precision.casting import computing
from ldmrt.export.precision.islands import measure
from ldmrt.export.precision.policy import apply_precisions, choose_precisions, islands, parse, precisions
from ldmrt.export.precision.search import error, raise_until_accurate
from ldmrt.model import load
from ldmrt.runtime import Bundle, LdmrtError
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.backends.ort.engine import OrtEngine
from ldmrt.runtime.parity.metrics import psnr, tensor_error
from ldmrt.runtime.parity.tolerances import COMPONENT

from ...support.pipelines import save_pipeline

SHIPPED = Path(__file__).parents[3] / "model" / "pretrained" / "emoji64"
PROMPT = "a panda, noto style, orange background"
LIMIT = COMPONENT["fp16"].limit
HALVES = [("", torch.float16)]


def reading(checkpoint: Path) -> Any:
    return lambda dtype: (load(checkpoint, dtype=dtype), {})


@pytest.fixture(scope="module")
def inexact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in which a resnet adds 3000 and takes it away again: in range, and halves of 3000 are 2 apart."""
    folder, tiny = tmp_path_factory.mktemp("inexact") / "checkpoint", load(checkpoint)
    with torch.no_grad():
        tiny.unet.mid_block.resnets[0].conv1.bias += 3000
        tiny.unet.mid_block.resnets[0].time_emb_proj.bias -= 3000
    tiny.save(folder)
    return folder


def errors(engine: Any, wide: Component, sizes: dict[str, int]) -> list[float]:
    """Of every output, relative to the largest value of float32 PyTorch's."""
    inputs = example(wide, sizes)
    expected, found = wide.engine()(**inputs), engine(**inputs)
    assert found.keys() == expected.keys()
    return [tensor_error("", "", "", name, found[name], expected[name], 0.0).relative for name in expected]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_halves_of_a_family_on_onnx_runtime(family: str, tmp_path: Path) -> None:
    """Every component within 1e-2 of PyTorch in float32. The autoencoder of SDXL is asked for by name, for its config
    says force_upcast.
    """
    folder = save_pipeline(family, tmp_path / family)
    loaded, _, found = choose_precisions(reading(folder), parse("fp16,vae_decoder=fp16,vae_encoder=fp16"))
    assert found == {}
    side = loaded.unet.config.sample_size * loaded.vae.config.factor
    wide = components(load(folder))
    for name, part in components(loaded).items():
        assert part.precision == "fp16"
        engine = OrtEngine(name, to_onnx(part, tmp_path / name))
        assert max(errors(engine, wide[name], {"batch": 2, "height": side, "width": side})) <= 1e-2, name


@pytest.mark.slow
def test_the_shipped_model_in_halves_on_onnx_runtime(tmp_path: Path, shared_exports: None) -> None:
    """The final picture within 40 dB of PyTorch's in float32: an RMS error of two and a half grey levels."""
    loaded, _, found = choose_precisions(reading(SHIPPED), {"": "fp16"})
    assert found == {}
    for _ in export_bundle(loaded, tmp_path / "half"):
        pass
    half, whole = open_pipeline(tmp_path / "half", check=False), torch_pipeline(load(SHIPPED))
    asked: dict[str, Any] = {"num_inference_steps": 20, "guidance_scale": 5.0, "seed": 1}
    assert psnr(half(PROMPT, **asked).pixels, whole(PROMPT, **asked).pixels) >= 40.0


@pytest.mark.slow(minutes=0.1)
def test_an_inexact_module_becomes_an_island(inexact: Path) -> None:
    """The one around both that cancel each other: what either gives alone would be rounded at its own door."""
    told: list[str] = []
    loaded, _, found = choose_precisions(reading(inexact), {"": "fp16"}, tell=told.append)
    said = {"encoding a prompt in float32", "drew row 1 of 8 of an image in float32", "unet: its error in fp16"}
    assert said < {*told}
    assert {name: list(modules) for name, modules in found.items()} == {"unet": ["mid_block.resnets.0"]}
    why = found["unet"]["mid_block.resnets.0"]
    assert why.startswith("error: 0.")
    assert why.endswith("of tolerance 0.01")
    wide, sizes = components(load(inexact))["unet"], {"batch": 2, "height": 16, "width": 16}
    bare, _ = apply_precisions(reading(inexact), {"": "fp16"}, {})
    (without,), (held,) = (errors(components(one)["unet"].engine(), wide, sizes) for one in (bare, loaded))
    assert held <= LIMIT < 0.1 < without
    kept, given = loaded.unet.mid_block.resnets[0], wide.module.model.mid_block.resnets[0]
    for one, other in zip(kept.parameters(), given.parameters(), strict=True):
        assert torch.equal(one, other)  # as the file has them: not rounded


@pytest.mark.slow(minutes=0.07)
def test_islands_of_errors_are_built_again_from_the_manifest(
    inexact: Path, tmp_path: Path, exported: list[str]
) -> None:
    loaded, _, found = choose_precisions(reading(inexact), {"": "fp16"})
    for _ in export_bundle(loaded, tmp_path / "half", islands=found):
        pass
    opened = Bundle.open(tmp_path / "half")
    assert islands(opened) == found
    again, _ = apply_precisions(reading(inexact), precisions(opened), islands(opened))
    for one, other in zip(again.unet.parameters(), loaded.unet.parameters(), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.slow
def test_a_margin_of_two_where_it_can_be_had(checkpoint: Path) -> None:
    """A quiet network errs by 1.8e-3 in halves; 1.2e-3 is left with islands all over, of what is between them."""
    measured = measure(load(checkpoint), ["unet"])["unet"]
    assert 1.5e-3 < error(measured.part, measured.cases, HALVES) < 2e-3
    assert raise_until_accurate(measured, "fp16", {}, 1e-2) == {}
    found = raise_until_accurate(measured, "fp16", {}, 2.5e-3)
    regions = [*HALVES, *((path, torch.float32) for path in found)]
    assert error(measured.part, measured.cases, regions) <= 1.25e-3
    assert raise_until_accurate(measured, "fp16", {}, 2e-3) == {}  # it holds, and a margin cannot be had
    with pytest.raises(LdmrtError, match="cannot hold"):
        raise_until_accurate(measured, "fp16", {}, 1e-3)


@pytest.mark.slow(minutes=0.1)
def test_what_no_island_can_hold_is_said(checkpoint: Path, tmp_path: Path) -> None:
    """The values between two modules are large, and a norm after them takes that away: none lies around both."""
    tiny = load(checkpoint)
    with torch.no_grad():
        tiny.unet.up_blocks[1].attentions[1].proj_out.bias += 3000
    tiny.save(tmp_path)
    with pytest.raises(LdmrtError) as refused:
        choose_precisions(reading(tmp_path), {"": "fp16"})
    assert str(refused.value).startswith("unet: fp16 cannot hold the tolerance")
    assert "expected 0.01 of the largest value; found " in str(refused.value)
    assert "--precision fp16,unet=fp32" in str(refused.value)
    loaded, _, found = choose_precisions(reading(tmp_path), parse("fp16,unet=fp32"))
    assert found == {}
    assert components(loaded)["unet"].precision == "fp32"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_measured_as_pytorch_computes(checkpoint: Path, dtype: torch.dtype) -> None:
    """Values rounded around float32 arithmetic, against PyTorch's own arithmetic in that precision."""
    loaded = load(checkpoint)
    wide = measure(loaded, ["unet"])["unet"].part
    inputs = example(wide, {"batch": 2, "height": 16, "width": 16})
    exact = wide.engine()(**inputs)["out_sample"]
    with computing(wide.module, [("", dtype)]):
        found = wide.engine()(**inputs)["out_sample"]
    assert all(one.dtype == torch.float32 for one in loaded.unet.parameters())  # as before
    expected = components(load(checkpoint, dtype=dtype))["unet"].engine()(**inputs)["out_sample"]
    apart, cost = np.abs(found - expected).max(), np.abs(expected - exact).max()
    assert cost > 0
    assert apart <= 2 * cost  # bfloat16: 0; half a unit in the last place here and there makes it in float16


@pytest.mark.slow(minutes=0.11)
def test_force_upcast_of_sdxl_is_known(tmp_path: Path) -> None:
    folder = save_pipeline("sdxl", tmp_path / "sdxl")
    loaded, _, found = choose_precisions(reading(folder), {"": "fp16"})
    assert {name: modules[""] for name, modules in found.items()} == dict.fromkeys(
        ("vae_decoder", "vae_encoder"), "force_upcast in the autoencoder's config"
    )
    kinds = {name: part.precision for name, part in components(loaded).items()}
    assert kinds["vae_decoder"] == kinds["vae_encoder"] == "fp32"
    assert kinds["unet"] == "fp16"
    _, _, found = choose_precisions(reading(folder), parse("fp16,vae_decoder=fp16"))
    assert list(found) == ["vae_encoder"]


class InstanceNormalization(OpRun):
    """Adds up in float32, as backends do; ONNX's own adds up in bfloat16."""

    def _run(self, x: Any, scale: Any, shift: Any, epsilon: float) -> tuple[Any]:
        wide, axes = x.astype(np.float32), tuple(range(2, x.ndim))
        mean, variance = wide.mean(axes, keepdims=True), wide.var(axes, keepdims=True)
        line = (-1, *(1,) * len(axes))
        normal = (wide - mean) / np.sqrt(variance + epsilon)
        return (
            (normal * scale.astype(np.float32).reshape(line) + shift.astype(np.float32).reshape(line)).astype(x.dtype),
        )


@pytest.mark.slow  # an export that only slow tests share
def test_bfloat16_graph_computes_what_pytorch_does(
    checkpoint: Path, tmp_path: Path, export_once: Callable[[Component, Path], Path]
) -> None:
    """By ONNX's own evaluator: ONNX Runtime has not the kernels. Its doors are float32."""
    loaded, _, found = choose_precisions(reading(checkpoint), {"": "bf16"})
    assert found == {}
    part, wide = components(loaded)["unet"], components(load(checkpoint))["unet"]
    assert part.precision == "bf16"
    assert {spec.dtype for spec in part.inputs + part.outputs} == {"float32"}
    inputs = example(part, {"batch": 2, "height": 16, "width": 16})
    path = export_once(part, tmp_path)
    assert {file.name for file in path.parent.glob("*.onnx")} == {"model.onnx", "step.onnx"}  # CUDA has no kernels
    (graph,) = ReferenceEvaluator(str(path), new_ops=[InstanceNormalization]).run(None, inputs)
    (torchs,), (exact,) = (one.engine()(**inputs).values() for one in (part, wide))
    size, cost = np.abs(exact).max(), np.abs(torchs - exact).max()
    assert 1e-3 < cost / size <= COMPONENT["bf16"].limit
    # two programs round at other places: as far from each other as each is from float32
    assert np.abs(graph - torchs).max() <= 2 * cost
    with pytest.raises(LdmrtError, match="NOT_IMPLEMENTED"):
        OrtEngine("unet", tmp_path / "model.onnx")
