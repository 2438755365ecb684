"""Weights as people store them: float8 with scales and without, float64, mixed; files under another's suffix."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldmrt.model.weights.weights import Tensors, fill, match, open_noted, open_weights
from ldmrt.runtime import LdmrtError

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
State = dict[str, Tensor]


def loaded(path: Path, dtype: torch.dtype | None, rows: int = 4) -> nn.Module:
    """A linear layer filled from a file."""
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(6, rows))
    tensors = Tensors(open_weights("unet", path), path)
    return fill("unet", network, match("unet", network, tensors), tensors, dtype)


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("asked", [None, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [*FLOAT8, torch.float64])
@pytest.mark.parametrize("mixed", [None, torch.float16, torch.float32, torch.float64])
def test_every_dtype_is_computed_in_another(
    stored: torch.dtype, mixed: torch.dtype | None, asked: torch.dtype | None, pickled: bool, tmp_path: Path
) -> None:
    """As stored means the narrowest dtype that torch computes in and that holds every value."""
    weight = torch.linspace(-3, 3, 24).reshape(4, 6).to(stored)
    state = {"0.weight": weight, "0.bias": torch.linspace(-1, 1, 4).to(mixed or stored)}
    path = tmp_path / ("x.bin" if pickled else "x.safetensors")
    torch.save(state, path) if pickled else save_file(state, path)
    network = loaded(path, asked)
    kinds = {parameter.dtype for parameter in network.parameters()}
    assert kinds <= {torch.float32, torch.float16, torch.bfloat16}
    assert len(kinds) == 1
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key].to(asked or torch.float32).to(value.dtype))
    assert network(torch.ones(1, 6, dtype=kinds.pop())).isfinite().all()


def scaled(weight: Tensor, scale: Tensor, name: str, **marks: Tensor) -> State:
    """A file with a weight of float8 that its scale belongs to."""
    names = {"comfy": "0.scale_weight", "weight": "0.weight_scale", "inverse": "0.weight_scale_inv"}
    return {"0.weight": weight, "0.bias": torch.zeros(4), names[name]: scale, **marks}


SHAPES: dict[str, tuple[int, ...]] = {
    "one": (), "one of a list": (1,), "a row": (4,), "a row, kept": (4, 1), "a block": (4, 3), "two blocks": (2, 2),
    "a block, kept": (4, 2, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", ["comfy", "weight", "inverse"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stored", FLOAT8)
def test_scales(stored: torch.dtype, shape: str, name: str, tmp_path: Path) -> None:
    weight = torch.linspace(-200, 200, 24).reshape(4, 6).to(stored)
    size = SHAPES[shape]
    scale = torch.linspace(0.01, 0.02, max(1, int(torch.Size(size).numel()))).reshape(size)
    marks = {
        "scaled_fp8": torch.empty(0, dtype=stored),
        "0.scale_input": torch.ones(()),
        "0.input_scale": torch.ones(1),
    }
    if name == "weight":
        marks["0.comfy_quant"] = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    save_file(scaled(weight, scale, name, **marks), tmp_path / "x.safetensors")
    factor = scale.reshape(4, -1) if size and size[0] == 4 else scale
    if factor.ndim == 2:
        factor = factor.repeat_interleave(4 // factor.shape[0], 0).repeat_interleave(6 // factor.shape[1], 1)
    network = loaded(tmp_path / "x.safetensors", None)
    assert torch.equal(network.state_dict()["0.weight"], weight.float() * factor)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"0.scale_weight": torch.ones(3)}, r"unsupported scale of 0.weight .*; found shape \(3,\) for \(4, 6\)"),
        ({"0.scale_weight": torch.ones(0)}, "unsupported scale of 0.weight"),
        ({"0.weight_scale": torch.ones(2, 2, 2)}, "unsupported scale of 0.weight"),
        ({"0.weight_scale": torch.ones(4, dtype=torch.uint8)}, "unsupported scale of 0.weight"),
        (
            {"0.comfy_quant": torch.tensor(list(b'{"format": "mxfp8"}'), dtype=torch.uint8)},
            "unsupported format of the weight of 0.comfy_quant .*; found 'mxfp8'",
        ),
        ({"0.comfy_quant": torch.tensor(list(b"[1]"), dtype=torch.uint8)}, "cannot read 0.comfy_quant"),
        ({"1.weight_scale": torch.ones(1)}, "holds 1 unexpected tensors; found 1.weight_scale"),
    ],
)
def test_scales_that_say_something_else(state: State, message: str, tmp_path: Path) -> None:
    whole = {"0.weight": torch.ones(4, 6).to(torch.float8_e4m3fn), "0.bias": torch.zeros(4), **state}
    save_file(whole, tmp_path / "x.safetensors")
    with pytest.raises(LdmrtError, match=message):
        loaded(tmp_path / "x.safetensors", None)


def test_a_scale_beside_plain_weights_is_no_scale(tmp_path: Path) -> None:
    save_file(scaled(torch.ones(4, 6), torch.ones(()), "weight"), tmp_path / "x.safetensors")
    with pytest.raises(LdmrtError, match=r"unexpected tensors; found 0.weight_scale"):
        loaded(tmp_path / "x.safetensors", None)


WRITERS: dict[str, Callable[[State, Path], Any]] = {
    "safetensors": save_file,
    "zip": torch.save,
    "legacy": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "lightning": lambda state, path: torch.save({"state_dict": state, "global_step": 5}, path),
    "trainer": lambda state, path: torch.save({"model": {"module": state}, "optimizer": {"state": {}}}, path),
}


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt", "bin", "pt", "pth", "sft", ""])
@pytest.mark.parametrize("writer", WRITERS)
def test_the_first_bytes_say_the_format(writer: str, suffix: str, tmp_path: Path) -> None:
    state = {"0.weight": torch.arange(24.0).reshape(4, 6), "0.bias": torch.ones(4)}
    path = tmp_path / f"x.{suffix}".rstrip(".")
    WRITERS[writer](state, path)
    found, notes = open_noted("unet", path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key].read(), value) for key, value in state.items())
    assert notes == ({"global_step": 5} if writer == "lightning" else {})


def test_a_dict_that_holds_itself(tmp_path: Path) -> None:
    state: dict[str, Any] = {"0.weight": torch.ones(4, 6)}
    state["state_dict"] = {"model": state}
    torch.save(state, tmp_path / "x.ckpt")
    with pytest.raises(LdmrtError, match=r"cannot read .*; found a .* without an end"):
        open_weights("unet", tmp_path / "x.ckpt")


def test_a_tensor_larger_than_its_file(tmp_path: Path) -> None:
    """One number that stands for 40 GB: strides of zero."""
    torch.save({"0.weight": torch.ones(1).expand(100_000, 100_000)}, tmp_path / "x.bin")
    with pytest.raises(LdmrtError, match=r"0.weight in .* declares more .*; found shape \(100000, 100000\)"):
        open_weights("unet", tmp_path / "x.bin")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_storage_larger_than_its_file(legacy: bool, tmp_path: Path) -> None:
    plain = io.BytesIO()
    torch.save({"0.weight": torch.ones(24)}, plain, _use_new_zipfile_serialization=not legacy)
    small, large = b"K\x18", b"\x8a\x05" + struct.pack("<q", 24 << 30)[:5]
    content = plain.getvalue()
    if legacy:
        assert content.count(small) >= 2
        (tmp_path / "x.bin").write_bytes(content.replace(small, large))
    else:
        with zipfile.ZipFile(plain) as old, zipfile.ZipFile(tmp_path / "x.bin", "w") as new:
            for entry in old.infolist():
                data = old.read(entry)
                new.writestr(entry, data.replace(small, large) if entry.filename.endswith("data.pkl") else data)
    with pytest.raises(LdmrtError):
        open_weights("unet", tmp_path / "x.bin")


def test_an_archive_that_grows(tmp_path: Path) -> None:
    plain = io.BytesIO()
    torch.save({"0.weight": torch.zeros(1 << 20)}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(tmp_path / "x.bin", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(LdmrtError, match="expected an archive without compression"):
        open_weights("unet", tmp_path / "x.bin")


class Zeros:
    """A pickle of a few bytes that asks for a terabyte of them."""

    def __reduce__(self) -> Any:
        return bytearray, (1 << 40,)


def test_a_buffer_of_zeros(tmp_path: Path) -> None:
    torch.save({"0.weight": torch.ones(4), "note": Zeros()}, tmp_path / "x.bin")
    with pytest.raises(LdmrtError, match=r"cannot read .*; expected tensors alone; found bytearray"):
        open_weights("unet", tmp_path / "x.bin")
    (tmp_path / "y.bin").write_bytes(pickle.dumps({"note": Zeros()}, 2))
    with pytest.raises(LdmrtError, match="found bytearray"):
        open_weights("unet", tmp_path / "y.bin")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("kind", ["sparse", "meta", "quantized"])
def test_tensors_that_are_not_dense(kind: str, tmp_path: Path) -> None:
    tensor = {
        "sparse": lambda: torch.eye(4).to_sparse(),
        "meta": lambda: torch.ones(4, device="meta"),
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8),
    }[kind]()
    torch.save({"0.weight": tensor}, tmp_path / "x.bin")
    with pytest.raises(LdmrtError):
        open_weights("unet", tmp_path / "x.bin")
