"""What is merged into a checkpoint is rounded once, in the dtype that is exported."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ldmrt.export.precision.policy import apply_precisions, choose_precisions
from ldmrt.model import load
from ldmrt.model.lora.merge import merge, read_lora
from ldmrt.runtime import LdmrtError
from ldmrt.tools.options.checkpoint import CheckpointOptions

LAYERS = {
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (32, 32),
    "unet.down_blocks.0.resnets.0.conv1": (16, 16, 3, 3),
    "text_encoder.encoder.layers.0.self_attn.q_proj": (24, 24),
}


@pytest.fixture(scope="module")
def stored(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in bfloat16."""
    folder = tmp_path_factory.mktemp("stored") / "checkpoint"
    load(checkpoint).save(folder, torch.bfloat16)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two LoRAs whose deltas are some hundredths of the weights, in float16."""
    folder, rng = tmp_path_factory.mktemp("loras"), torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        state = {}
        for layer, (out, *kernel) in LAYERS.items():
            state[f"{layer}.lora_B.weight"] = (
                torch.randn(out, 2, *([1] * (len(kernel) - 1)), generator=rng) / 50
            ).half()
            state[f"{layer}.lora_A.weight"] = (torch.randn(2, *kernel, generator=rng) / 50).half()
        save_file(state, folder / f"{name}.safetensors")
    save_file({"<pear>": torch.randn(1, 24, generator=rng)}, folder / "pear.safetensors")
    return [folder / f"{name}.safetensors" for name in ("a", "b")]


def reading(checkpoint: Path, loras: list[tuple[Path, float]], embeddings: Any = ()) -> CheckpointOptions:
    return CheckpointOptions(
        str(checkpoint), None, None, None, {}, {}, tuple(loras), tuple(embeddings), None, {}, None, {}
    )


def deltas(files: list[tuple[Path, float]]) -> Mapping[str, Tensor]:
    """By hand, in float64."""
    total: dict[str, Tensor] = {}
    for path, weight in files:
        for (component, module), layer in read_lora(path).layers.items():
            assert layer.delta is not None
            up, down = (
                torch.from_numpy(part.copy()).double().flatten(1) for part in (layer.delta.up, layer.delta.down)
            )  # type: ignore[attr-defined]
            key = f"{component} {module}"
            total[key] = total.get(key, 0) + weight * (up @ down)
    return total


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_two_files_are_rounded_once(precision: str, stored: Path, files: list[Path]) -> None:
    loras = [(files[0], 0.8), (files[1], -0.5)]
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    merged, _ = apply_precisions(reading(stored, loras).load, {"": precision}, {})
    plain = load(stored, dtype=None)
    wanted = deltas(loras)
    seen = 0
    for component in ("unet", "text_encoder"):
        before = dict(plain.networks[component].named_parameters())
        for name, parameter in merged.networks[component].named_parameters():
            assert parameter.dtype == dtype
            key = f"{component} {name.removesuffix('.weight').removeprefix('text_model.').replace('.', '_')}"
            exact = (
                before[name].double() + wanted[key].reshape(parameter.shape) if key in wanted else before[name].double()
            )
            # sums in float32, then half of the last place of the dtype, which small numbers have in common
            kind = torch.finfo(dtype)
            half, least = kind.eps / 2 * 1.001 + 1e-6, kind.smallest_normal * kind.eps + 1e-9
            assert bool(((parameter.double() - exact).abs() <= half * exact.abs() + least).all()), name
            seen += key in wanted
    assert seen == len(LAYERS)


def test_layers_that_no_file_touches_stay_as_they_are_stored(stored: Path, files: list[Path]) -> None:
    loaded, _ = reading(stored, [(files[0], 1.0)], [(files[0].with_name("pear.safetensors"), None)]).load({"": None})
    wide = [
        name
        for component in ("unet", "text_encoder")
        for name, parameter in loaded.networks[component].named_parameters(component)
        if parameter.dtype == torch.float32
    ]
    assert len(wide) == len(LAYERS) + 1  # and the table of words
    narrow = load(stored, dtype=torch.float16)
    merge(narrow.networks, [(read_lora(files[0]), 1.0)])
    assert {parameter.dtype for parameter in narrow.unet.parameters()} == {torch.float16}


def test_vectors_are_rounded_once(stored: Path, files: list[Path]) -> None:
    from ldmrt.model.textual_inversion.merge import read_embedding

    path = files[0].with_name("pear.safetensors")
    loaded, merged = apply_precisions(reading(stored, [], [(path, "pearly")]).load, {"": "fp16"}, {})
    table = loaded.text_encoders["text_encoder"].get_input_embeddings().weight
    assert torch.equal(table[-1], read_embedding(path).vectors[""][0].half())
    assert merged["embeddings"][0]["words"] == ["pearly"]


def test_islands_are_measured_of_mixed_weights(stored: Path, files: list[Path]) -> None:
    loaded, _, islands = choose_precisions(reading(stored, [(files[0], 1.0)]).load, {"": "fp16"})
    assert "unet" not in islands
    assert {parameter.dtype for parameter in loaded.unet.parameters()} == {torch.float16}


def test_weights_that_a_half_cannot_hold_are_named(stored: Path, files: list[Path]) -> None:
    source = reading(stored, [(files[0], 1e9)]).load
    message = r"(unet|text_encoder): .*weight is not finite in float16\n  try: --precision \1=fp32"
    with pytest.raises(LdmrtError, match=message):
        apply_precisions(source, {"": "fp16"}, {})
    apply_precisions(source, {"": "bf16"}, {})
    with pytest.raises(LdmrtError, match=r"lora: .* of a\.safetensors overflows in torch\.float16"):
        merge(load(stored, dtype=torch.float16).networks, [(read_lora(files[0]), 1e9)])
