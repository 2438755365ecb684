"""An export that casts weights when it writes them, against the same with weights that were cast before it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldmrt.export.components.fingerprint import fingerprint
from ldmrt.export.components.table import components
from ldmrt.export.graph import to_onnx as graphs
from ldmrt.export.graph.to_onnx import to_onnx
from ldmrt.export.precision.policy import apply_precisions
from ldmrt.model import load
from ldmrt.model.weights import unread
from ldmrt.runtime import LdmrtError
from ldmrt.tools.options.checkpoint import CheckpointOptions

from ...support.fakes.wide import wide_checkpoint

ISLANDS = {"unet": {"mid_block.resnets.0": "a test"}}


def reading(checkpoint: Path, *loras: tuple[Path, float]) -> CheckpointOptions:
    return CheckpointOptions(str(checkpoint), None, None, None, {}, {}, loras, (), None, {}, None, {})


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, layer = tmp_path_factory.mktemp("lora") / "x.safetensors", "unet.mid_block.attentions.0.transformer_blocks.0"
    sides = {f"{layer}.attn1.to_q.lora_{side}.weight": torch.randn(shape) / 9 for side, shape in
             (("A", (2, 32)), ("B", (32, 2)))}  # fmt: skip
    save_file(sides, path)
    return path


@pytest.mark.slow(minutes=1)
@pytest.mark.parametrize(("stored", "wanted"), [("float32", "fp16"), ("float16", "fp32")])
def test_files_are_those_of_weights_that_were_cast_before(
    stored: str, wanted: str, checkpoint: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((unread, "SMALL"), (graphs, "LARGE")):
        monkeypatch.setattr(module, name, 4096)  # four times what the optimiser reads; nearly all weights are smaller
    monkeypatch.setattr("ldmrt.export.graph.cpu.winograd.FEWEST", 32)
    folder, islands = tmp_path / "checkpoint", ISLANDS if wanted == "fp16" else {}
    load(checkpoint).save(folder, getattr(torch, stored))
    source = reading(folder, (lora, 0.7))
    before, after = (apply_precisions(source.load, {"": wanted}, islands, late=late)[0] for late in (False, True))
    held = [key for key, value in after.denoiser.state_dict().items() if not value.any()]
    assert len(held) > 20  # zeros until they are read
    for name, component in components(before).items():
        late = components(after)[name]
        assert fingerprint(late) == fingerprint(component)
        if name == "unet":
            for part, place in ((component, "before"), (late, "after")):
                to_onnx(part, tmp_path / place)
            files = [sorted((tmp_path / place).iterdir()) for place in ("before", "after")]
            assert len({tuple(file.name for file in side) for side in files}) == 1
            assert len(files[0]) == 5  # two graphs and their forms for CUDA, and the weights
            for one, other in zip(*files, strict=True):
                assert one.read_bytes() == other.read_bytes(), one.name


def test_weight_that_overflows_is_refused_before_anything_is_written(checkpoint: Path, tmp_path: Path) -> None:
    loaded = load(checkpoint)
    with torch.no_grad():
        loaded.unet.conv_out.weight[0, 0, 0, 0] = 1e5
    loaded.save(tmp_path)
    messages = []
    for late in (False, True):
        with pytest.raises(LdmrtError, match=r"conv_out\.weight is not finite in float16") as raised:
            apply_precisions(reading(tmp_path).load, {"": "fp16"}, {}, late=late)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


# In a process of its own: memory that earlier tests have freed would hide a part of what is measured.
PEAK = """
import re, sys
from pathlib import Path
import torch, onnx, onnx_ir, onnxscript, transformers
from ldmrt.export.bundle_writer import export_bundle
from ldmrt.export.components.table import components
from ldmrt.export.graph.to_onnx import to_onnx
from ldmrt.export.precision.policy import choose_precisions
from ldmrt.model import load
from ldmrt.tools.options.checkpoint import CheckpointOptions

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

small, large, lora, out = map(Path, sys.argv[1:])
for _ in export_bundle(load(small), out / "small"):
    pass  # libraries are loaded, and the exporter's tables are made
Path("/proc/self/clear_refs").write_text("5")
before = peak()
source = CheckpointOptions(str(large), None, None, None, {}, {}, ((lora, 0.7),), (), None, {}, None, {})
loaded, merged, islands = choose_precisions(source.load, {"": "fp16"}, late=True)
for _ in export_bundle(loaded, out / "bundle", merged=merged, islands=islands):
    pass
print(peak() - before)
"""


@pytest.mark.slow(minutes=2)
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK),
    reason="this kernel does not let a process set its peak memory back, so no peak can be measured",
)
def test_peak_of_memory_is_a_part_of_the_weights(checkpoint: Path, tmp_path: Path) -> None:
    """Of a U-Net of 300 MB in half precision at most 0.3, and what tracing it and drawing with it takes.

    A third of the weights is stored in float8 with scales, one in bfloat16 and changed by a LoRA, one in float32.
    """
    model, megabytes = wide_checkpoint(640)
    assert 280 < megabytes < 320
    model.save(tmp_path / "large", torch.float32)
    path, lora = tmp_path / "large" / "unet" / "diffusion_pytorch_model.safetensors", tmp_path / "lora.safetensors"
    state, sides = load_file(path), {}
    for i, (key, weight) in enumerate(sorted(state.items())):
        if (module := key.removesuffix(".weight")) != key and weight.ndim > 1:
            state[key] = weight.to((torch.float8_e4m3fn, torch.bfloat16, torch.float32)[i % 3])
            if i % 3 == 0:
                state[f"{module}.scale_weight"] = torch.ones(())
            if i % 3 == 1:
                sides[f"unet.{module}.lora_A.weight"] = torch.full((1, *weight.shape[1:]), 1e-3)
                sides[f"unet.{module}.lora_B.weight"] = torch.full((len(weight), 1, *[1] * (weight.ndim - 2)), 1e-3)
    save_file(state, path)
    save_file(sides, lora)
    largest = 4 * max(weight.numel() for weight in state.values()) / 2**20  # in float32
    del model, state
    words = [sys.executable, "-c", PEAK, checkpoint, tmp_path / "large", lora, tmp_path]
    ran = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True)
    # beside the weights: the graph in several forms while it is traced, and what a LoRA adds to the largest weight
    assert float(ran.stdout) < 0.3 * megabytes + 90 + 2 * largest
