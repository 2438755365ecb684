"""The U-Net cut in two gives what the whole one gives, and what PyTorch's modules give, called one by one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import ldmrt.runtime
from ldmrt.export import bundle_writer
from ldmrt.export.bundle_writer import export_bundle
from ldmrt.export.components.specs import tensors
from ldmrt.export.components.table import Component, components, example
from ldmrt.export.graph.to_onnx import to_onnx
from ldmrt.export.graph.unet_halves import check_cut, cut
from ldmrt.model import Checkpoint, UNet, load
from ldmrt.runtime import LdmrtError, Request, sample
from ldmrt.runtime.backends.ort.engine import OrtEngine
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.graphs import CUDA, DEEP, FEATURE, SHALLOW, STEP, UNET_HALVES, path_of
from ldmrt.runtime.parity.tolerances import COMPONENT
from ldmrt.runtime.pipeline.denoising.deep_cache import full_times

from ...support.pipelines import save_pipeline

# Relative to the largest value: the same float32 nodes, of which ONNX Runtime may fuse those beside the cut otherwise.
SAME = 1e-6
# PyTorch beside ONNX Runtime through all rows, as the folded step beside the loop: float32 added up in another order.
ROWS = 1e-5

Parts = dict[str, OrtEngine]


def opened(folder: Path) -> Parts:
    """The U-Net, and its two parts."""
    graphs = {"unet": "model.onnx"} | {name: f"{name}.onnx" for name in UNET_HALVES}
    return {name: OrtEngine(name, folder / file) for name, file in graphs.items()}


def relative(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(found.astype(np.float64) - expected).max() / np.abs(expected).max())


def shallow(unet: UNet, deep: torch.Tensor, told: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the shallow graph computes, layer by layer."""
    named = {name: told.get(name) for name in ("text_embeds", "time_ids")}
    time = unet.time(told["sample"], told["timestep"], told.get("timestep_cond"), **named)
    last: Any = unet.up_blocks[-1]
    x = last.resnets[-1](torch.cat([deep, unet.conv_in(told["sample"])], dim=1), time)
    if last.attentions is not None:
        x = last.attentions[-1](x, told["encoder_hidden_states"])
    return unet.conv_out(F.silu(unet.conv_norm_out(x)))


def whole(unet: UNet, told: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the U-Net says, and the deep feature: what enters its last resnet, but for the skip."""
    entered = []
    last: Any = unet.up_blocks[-1]
    hook = last.resnets[-1].register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    others = {name: one for name, one in told.items() if name not in ("sample", "timestep", "encoder_hidden_states")}
    said = unet(told["sample"], told["timestep"], told["encoder_hidden_states"], **others)
    hook.remove()
    return said, entered[0][:, : -unet.config.block_out_channels[0]]


def against_torch(unet: UNet, part: Component, engines: Parts, limit: float) -> None:
    """At another picture and time than the deep feature's, in an odd batch and at sides that are odd and unlike."""
    sizes = {"batch": 3, "height": 9 * part.unit, "width": 7 * part.unit}
    first, second = (example(part, sizes, seed) for seed in (1, 2))
    second["timestep"] = second["timestep"][::-1].copy()
    with torch.no_grad():
        said, deep = whole(unet, tensors(part.inputs, first))
        expected = shallow(unet, deep, tensors(part.inputs, second))
        assert (
            relative(expected.numpy(), whole(unet, tensors(part.inputs, second))[0].numpy()) > 10 * limit
        )  # it is a cut
    full = engines[DEEP](**first)
    plain = engines["unet"](**first)["out_sample"]
    np.testing.assert_array_equal(full["out_sample"], plain)
    assert relative(full["out_sample"], said.numpy()) < limit
    assert relative(full[FEATURE], deep.numpy()) < limit
    assert relative(engines[SHALLOW](**second, deep=full[FEATURE])["out_sample"], expected.numpy()) < limit
    again = engines[SHALLOW](**first, deep=full[FEATURE])["out_sample"]
    assert relative(again, plain) < (SAME if part.precision == "fp32" else limit)


def test_gives_what_pytorch_gives(halves: Path, loaded: Checkpoint) -> None:
    engines = opened(halves / "unet")
    against_torch(loaded.unet, components(loaded)["unet"], engines, COMPONENT["fp32"].limit)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "precision"),
    [
        ("sdxl", "fp32"),  # without attention at the top
        ("sdxl", "fp16"),
        *((name, "fp32") for name in ("sd15-inpainting", "lcm", "odd", "sd2-v")),
    ],
)
def test_families(family: str, precision: str, tmp_path: Path) -> None:
    kind = torch.float32 if precision == "fp32" else torch.float16
    checkpoint = load(save_pipeline(family, tmp_path / "checkpoint"), dtype={"": kind})
    part = components(checkpoint)["unet"]
    check_cut(part)
    cut(to_onnx(part, tmp_path / "unet"), part)
    engines = opened(tmp_path / "unet")
    against_torch(checkpoint.unet, part, engines, COMPONENT[precision].limit)
    assert_shallow(tmp_path / "unet" / f"{SHALLOW}.onnx")


@pytest.mark.slow
def test_more_layers_a_level(loaded: Checkpoint, tmp_path: Path) -> None:
    """As real U-Nets have: the shallow graph keeps one of the last block's three."""
    torch.manual_seed(1)
    unet = UNet(replace(loaded.unet.config, layers_per_block=2)).eval()
    part = components(replace(loaded, denoiser=unet))["unet"]
    cut(to_onnx(part, tmp_path / "unet"), part)
    against_torch(unet, part, opened(tmp_path / "unet"), COMPONENT["fp32"].limit)
    assert_shallow(tmp_path / "unet" / f"{SHALLOW}.onnx")


def assert_shallow(path: Path) -> None:
    """Of all that has weights, only time, the first and the last layers are there."""
    graph = onnx.load(path, load_external_data=False).graph
    paths = {path_of(node.name) for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul", "Attention")}
    layers = {(block, layer) for path in paths if path.startswith("up_blocks")
              for _, block, _, layer, *_ in [path.split(".")]}  # fmt: skip
    assert len(layers) == 1
    assert {path.partition(".")[0] for path in paths} <= {
        "conv_in", "time_embedding", "add_embedding", "up_blocks", "conv_out",
    }  # fmt: skip


def test_has_no_weights_of_its_own(bundle: Path, halves: Path) -> None:
    """Both read those of the U-Net, which stays as it is."""
    assert_shallow(halves / "unet" / f"{SHALLOW}.onnx")
    for name in ("model.onnx", "model.onnx_data"):
        assert (halves / "unet" / name).read_bytes() == (bundle / "unet" / name).read_bytes()
    size = (bundle / "unet" / "model.onnx").stat().st_size
    assert (halves / "unet" / f"{DEEP}.onnx").stat().st_size < 1.1 * size
    assert (halves / "unet" / f"{SHALLOW}.onnx").stat().st_size < 0.5 * size


def by_hand(checkpoint: Checkpoint, task: Any, words: Any, scale: float, every: int) -> Any:
    """The rows by PyTorch's modules, one by one."""
    full, kept = full_times(task.plan, every), list[torch.Tensor]()

    def model(x: Any, t: float) -> Any:
        calls = np.concatenate([x, x])
        told = {"sample": calls, "timestep": np.full(len(calls), t, np.float32), "encoder_hidden_states": words}
        given = {name: torch.from_numpy(array) for name, array in told.items()}
        with torch.no_grad():
            if float(np.float32(t)) in full:
                said, deep = whole(checkpoint.unet, given)
                kept.append(deep)
            else:
                said = shallow(checkpoint.unet, kept[-1], given)
        negative, positive = said.numpy()[: len(x)], said.numpy()[len(x) :]
        return np.float32(1 - scale) * negative + np.float32(scale) * positive

    return sample(task.plan, task.x, model, task.noise)


@pytest.mark.parametrize("scheduler", ["euler_a", "heun"])
def test_pipeline_draws_what_pytorch_draws(halves: Path, loaded: Checkpoint, scheduler: str) -> None:
    pipeline = ldmrt.runtime.open(halves, check=False)
    asked = {
        "num_images_per_prompt": 2,
        "num_inference_steps": 7,
        "guidance_scale": 4.0,
        "scheduler": scheduler,
        "seed": 5,
    }
    found = pipeline("two pears", **asked, deep_cache=3).latents
    task = pipeline.prepare(Request("two pears", **asked))
    encoder = pipeline.engines["text_encoder"]
    words = encoder(input_ids=pipeline.tokenizers["tokenizer"](["", "", "two pears", "two pears"]))["last_hidden_state"]
    assert relative(found, by_hand(loaded, task, words, 4.0, 3)) < ROWS
    assert relative(found, task.last()) > 100 * ROWS
    one = [pipeline("two pears", num_inference_steps=1, deep_cache=every).latents for every in (None, 5)]
    np.testing.assert_array_equal(*one)  # for every row is full
    pipeline.close()


@pytest.mark.usefixtures("row_by_row")
def test_low_memory_and_folding(halves: Path) -> None:
    """A pipeline that folds runs a deep cache in the loop. One of low memory takes its weights as they lie in the file,
    and so rounds otherwise.
    """
    asked = {"num_inference_steps": 4, "deep_cache": 2, "seed": 1}
    made = []
    for how in ({}, {"low_memory": True}, {"fused": True}):
        pipeline = ldmrt.runtime.open(halves, check=False, **how)
        made.append([pipeline("two pears", **asked).latents for _ in range(2)][-1])
        assert pipeline.prepare(Request("two pears", **asked)).fused is None
        assert (pipeline.prepare("two pears").fused is not None) == ("fused" in how)
        pipeline.close()
    assert relative(made[1], made[0]) < ROWS
    np.testing.assert_array_equal(made[2], made[0])


def test_the_unet_itself_is_not_opened_for_it(halves: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[str] = []
    monkeypatch.setattr(OrtEngine, "__init__", noting(OrtEngine.__init__, there))
    pipeline = ldmrt.runtime.open(halves, check=False)
    pipeline("two pears", num_inference_steps=2, deep_cache=2)
    assert sorted(there) == ["text_encoder", DEEP, SHALLOW, "vae_decoder"]
    pipeline("two pears", num_inference_steps=2)
    assert there[4:] == ["unet"]
    pipeline.close()


def noting(init: Any, there: list[str]) -> Any:
    def noted(self: OrtEngine, component: str, *rest: Any, **options: Any) -> None:
        there.append(component)
        init(self, component, *rest, **options)

    return noted


@pytest.fixture
def copying(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Export gives what has been exported before."""

    def copied(component: Component, folder: Path) -> Path:
        return Path(shutil.copytree(bundle / component.name, folder)) / "model.onnx"

    monkeypatch.setattr(bundle_writer, "to_onnx", copied)


def listed(folder: Path) -> set[str]:
    """The files of the U-Net, which the manifest names and that are as it says."""
    files = Bundle.open(folder).manifest["files"]
    found = {f"unet/{path.name}" for path in (folder / "unet").iterdir()}
    assert {name for name in files if name.startswith("unet/")} == found
    return {Path(name).name for name in found}


@pytest.mark.usefixtures("copying")
def test_bundle_has_it_where_it_was_asked_for(loaded: Checkpoint, tmp_path: Path) -> None:
    folder, halves = tmp_path / "out", {f"{name}{end}" for name in UNET_HALVES for end in (".onnx", CUDA)}
    list(export_bundle(loaded, folder))
    plain = listed(folder)
    assert not plain & halves
    assert all(done.reused for done in export_bundle(loaded, folder, deep_cache=True))
    assert listed(folder) == plain | halves
    assert all(len(Bundle.open(folder).models(name)) == 2 for name in ("unet", STEP, *UNET_HALVES))
    manifest = json.loads((folder / "ldmrt.json").read_text())
    list(export_bundle(loaded, folder, deep_cache=True))
    assert json.loads((folder / "ldmrt.json").read_text()) == manifest  # the same bytes: a certificate holds
    list(export_bundle(loaded, folder, only=["vae_decoder"]))
    assert listed(folder) == plain | halves
    list(export_bundle(loaded, folder))
    assert listed(folder) == plain


@pytest.mark.usefixtures("copying")
def test_refused(loaded: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = components(loaded)["unet"]
    with pytest.raises(LdmrtError, match="no layers that a deep cache could skip; expected 2 levels; found 1"):
        check_cut(replace(unet, config={**unet.config, "block_out_channels": (16,)}))
    steered = replace(unet.inputs[0], name="mid_block_residual")
    with pytest.raises(LdmrtError, match="a deep cache cannot be combined with controls"):
        check_cut(replace(unet, inputs=(*unet.inputs, steered)))
    with pytest.raises(LdmrtError, match="expected unet among --components"):
        list(export_bundle(loaded, tmp_path / "out", only=["vae_decoder"], deep_cache=True))
    loaded.unet.bfloat16()
    with pytest.raises(LdmrtError, match="a deep cache cannot be kept in bfloat16"):
        list(export_bundle(loaded, tmp_path / "out", deep_cache=True))
    assert list(tmp_path.iterdir()) == []
