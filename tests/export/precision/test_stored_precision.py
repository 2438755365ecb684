"""Checkpoints stored in float8 and float64, alone or mixed in one file, in every precision of an export.

What is read when it is needed is compared with what is loaded and merged at once.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ldmrt.export.components.fingerprint import fingerprint
from ldmrt.export.components.table import components, example
from ldmrt.export.precision.casting import computing
from ldmrt.export.precision.policy import apply_precisions, parse
from ldmrt.export.precision.streaming import streamed
from ldmrt.model.networks.vq_autoencoder import Quantizer
from ldmrt.model.weights import unread
from ldmrt.model.weights.unread import leave_unread
from ldmrt.model.weights.weights import Tensors, fill, match, open_weights, write
from ldmrt.tools.options.checkpoint import CheckpointOptions

STORED = {
    "float8": (torch.float8_e4m3fn,),
    "float64": (torch.float64,),
    "scaled": (torch.float8_e4m3fn,),
    "mixed": (torch.float8_e4m3fn, torch.float8_e5m2, torch.float64, torch.float16, torch.bfloat16, torch.float32),
}


@pytest.fixture(scope="module", params=STORED)
def folder(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that is stored in one way, and a LoRA and a textual inversion beside it."""
    made = shutil.copytree(checkpoint, tmp_path_factory.mktemp("stored") / "checkpoint")
    kinds, rng = STORED[request.param], torch.Generator().manual_seed(0)
    for path in made.rglob("*.safetensors"):
        state = {key: value.to(kinds[i % len(kinds)]) for i, (key, value) in enumerate(sorted(load_file(path).items()))}
        if request.param == "scaled":
            matrices = [key for key, value in state.items() if key.endswith(".weight") and value.ndim > 1]
            state |= {key.removesuffix("weight") + "scale_weight": torch.tensor(0.7) for key in matrices}
        save_file(state, path)
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora"
    sides = {"A": torch.randn(2, 32, generator=rng) / 9, "B": torch.randn(32, 2, generator=rng) / 9}
    save_file({f"{layer}_{side}.weight": value for side, value in sides.items()}, made / "lora.safetensors")
    save_file({"<pear>": torch.randn(1, 24, generator=rng)}, made / "pear.safetensors")
    return made


def reading(folder: Path) -> CheckpointOptions:
    lora, pear = (folder / "lora.safetensors", 0.7), (folder / "pear.safetensors", None)
    return CheckpointOptions(str(folder), None, None, None, {}, {}, (lora,), (pear,), None, {}, None, {})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of 1 KB are left unread; all of the tiny networks' are smaller than those that are otherwise."""
    monkeypatch.setattr(unread, "SMALL", 1024)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "fp16,vae_decoder_fp32=fp32"])
def test_every_precision(precision: str, folder: Path) -> None:
    wanted = parse(precision)
    at_once, late = (apply_precisions(reading(folder).load, wanted, {}, late=late)[0] for late in (False, True))
    found, parts = components(late), components(at_once)
    assert {name: part.precision for name, part in found.items()} == {
        name: wanted.get(name, wanted[""]) for name in parts
    }
    for name, part in parts.items():
        assert fingerprint(found[name]) == fingerprint(part)
    held = [key for key, value in late.denoiser.state_dict().items() if value.nbytes > 1024 and not value.any()]
    assert len(held) > 20  # zeros until they are read


@pytest.mark.usefixtures("small")
def test_streamed_weights_compute_what_loaded_ones_do(folder: Path) -> None:
    with leave_unread():
        stored = reading(folder).load({"": None})[0]
    loaded = components(reading(folder).load({"": torch.float32})[0])
    assert any(value.nbytes > 1024 and not value.any() for value in stored.denoiser.state_dict().values())
    with streamed(stored) as parts:
        for name, part in parts.items():
            inputs = example(part, {"batch": 1, "height": 16, "width": 16})
            for one, other in zip(
                part.engine()(**inputs).values(), loaded[name].engine()(**inputs).values(), strict=True
            ):
                assert np.array_equal(one, other), name


class Placed(torch.nn.Module):
    """Adds a buffer, as Stable Diffusion 3 adds positions, and looks the sum up in a codebook."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("place", torch.randn(1, 4, 32, 32))
        self.quantize = Quantizer(512, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.quantize(x + self.place)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float16])
def test_buffers_and_weights_that_another_module_reads_are_lent(stored: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path, x = tmp_path / "x.safetensors", torch.randn(2, 4, 32, 32)
    save_file({key: value.to(stored) for key, value in Placed().state_dict().items()}, path)

    def loaded(dtype: torch.dtype | None) -> Placed:
        tensors, network = Tensors(open_weights("vae", path), path), Placed().to("meta")
        return fill("vae", network, match("vae", network, tensors), tensors, dtype)

    expected = loaded(torch.float32)(x)
    with leave_unread():
        network = loaded(None)
    with torch.no_grad(), computing(network, [("", torch.float32)]):
        assert torch.equal(network(x), expected)
    write("vae", tmp_path / "y.safetensors", network.state_dict())
    held = load_file(path)
    for key, value in load_file(tmp_path / "y.safetensors").items():
        assert torch.equal(value, held[key].to(value.dtype))
