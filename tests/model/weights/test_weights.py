"""Files of weights: which is read, what is read of it without a copy, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ldmrt.model import load
from ldmrt.model.weights.weight_files import choose, shards, variants
from ldmrt.model.weights.weights import Tensors, fill, finite, match, open_weights, write
from ldmrt.runtime import LdmrtError

from ...support.pipelines import save_pipeline

STEM = "diffusion_pytorch_model"
UNET = f"unet/{STEM}.safetensors"


def read(path: Path, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    return {key: tensor.read(dtype) for key, tensor in open_weights("unet", path).items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


# How diffusers and transformers save, now and before: arguments of save_pretrained.
SAVED: dict[str, dict[str, Any]] = {
    "whole": {},
    "variant": {"variant": "fp16"},
    "shards": {"max_shard_size": "20KB"},
    "shards of a variant": {"variant": "fp16", "max_shard_size": "20KB"},
    "pickled": {"safe_serialization": False},
    "pickled shards of a variant": {"safe_serialization": False, "variant": "non_ema", "max_shard_size": "20KB"},
}


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    widths = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "cross_attention_dim": 8}
    blocks = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    return diffusers.UNet2DConditionModel(down_block_types=blocks[0], up_block_types=blocks[1], **widths)


@pytest.mark.parametrize("name", SAVED)
def test_what_diffusers_saves_is_read(name: str, unet: Any, tmp_path: Path) -> None:
    unet.save_pretrained(tmp_path, **SAVED[name])
    names = [path.name for path in tmp_path.iterdir()]
    variant = SAVED[name].get("variant")
    chosen = choose("unet", names, variant, tmp_path)
    assert (len(shards(chosen, names)) > 1) == ("shards" in name)
    assert {"config.json", chosen, *shards(chosen, names)} == set(names)
    assert equal(read(tmp_path / chosen), unet.state_dict())
    assert chosen == choose("unet", names, None, tmp_path)  # the only one that is there
    with pytest.raises(LdmrtError, match="no bf16 or plain weights") if variant else pytest.raises(AssertionError):
        assert choose("unet", names, "bf16", tmp_path) != chosen  # the plain one is taken in its place


NAMES = {  # spelling -> variant, as found on the hub
    "diffusion_pytorch_model.safetensors": "",
    "diffusion_pytorch_model.bin": "",
    "diffusion_pytorch_model.ckpt": "",
    "diffusion_pytorch_model.fp16.safetensors": "fp16",
    "diffusion_pytorch_model.fp16-ema-pruned.bin": "fp16-ema-pruned",
    "diffusion_pytorch_model.safetensors.index.json": "",
    "diffusion_pytorch_model.safetensors.index.fp16.json": "fp16",
    "diffusion_pytorch_model.fp16.safetensors.index.json": "fp16",
    "diffusion_pytorch_model.safetensors.fp16.index.json": "fp16",
    "model.safetensors": "",
    "model.fp16.safetensors": "fp16",
    "pytorch_model.bin": "",
    "pytorch_model.bin.index.fp16.json": "fp16",
}
OTHERS = [
    "config.json", "model.onnx", "model.json", "flax_model.msgpack", "openvino_model.bin", "model.safetensors.part",
    "diffusion_pytorch_model-00001-of-00002.safetensors", "model.fp16-00001-of-00002.safetensors", "pytorch_model",
    "diffusion_pytorch_model-00001-of-00002.fp16.bin",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_spelling(name: str) -> None:
    assert variants([*OTHERS, name]) == {NAMES[name]: name}


def test_other_files_are_no_weights() -> None:
    assert variants(OTHERS) == {}


def test_which_is_read() -> None:
    """safetensors before what is pickled, whole before shards, the plain ones before a variant."""
    plain = [f"{STEM}.safetensors", f"{STEM}.safetensors.index.json", f"{STEM}.bin", f"{STEM}.ckpt"]
    half = [f"{STEM}.fp16.safetensors", f"{STEM}.fp16.bin"]
    while plain:
        assert choose("unet", [*reversed(plain), *half], None, "here") == plain.pop(0)
    assert choose("unet", half, None, "here") == half[0]
    assert choose("unet", [f"{STEM}.bin", *half], "fp16", "here") == half[0]
    assert choose("unet", [f"{STEM}.bin", *half], "non_ema", "here") == f"{STEM}.bin"
    with pytest.raises(LdmrtError, match="no plain weights in here; found fp16, non_ema"):
        choose("unet", [*half, f"{STEM}.non_ema.bin"], None, "here")
    with pytest.raises(LdmrtError, match=r"missing file; expected here/model\.safetensors"):
        choose("text_encoder_2", OTHERS, None, "here")


def test_shards_of_a_variant() -> None:
    plain = [f"{STEM}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    new = [f"{STEM}.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    old = [f"{STEM}-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)]  # of 2023
    for index, files in (
        (f"{STEM}.safetensors.index.json", plain),
        (f"{STEM}.safetensors.index.fp16.json", new),
        (f"{STEM}.fp16.safetensors.index.json", old),
    ):
        others = [name for name in (plain + new + old) if name not in files] if files is plain else plain
        assert shards(index, [*files, *others]) == files
    assert shards(f"{STEM}.safetensors", plain) == []


@pytest.mark.parametrize("variant", [None, "fp16", "bf16"])
def test_variant_of_a_checkpoint(variant: str | None, checkpoint: Path, tmp_path: Path) -> None:
    """A part that lacks the variant is read from its plain file, as diffusers does."""
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    half = {key: value.half() * 2 for key, value in load_file(folder / UNET).items()}
    save_file(half, folder / "unet" / f"{STEM}.fp16.safetensors", metadata={"format": "pt"})
    if variant == "bf16":
        with pytest.raises(LdmrtError, match=r"no variant 'bf16' in .*; found fp16, plain"):
            load(folder, variant=variant)
        return
    loaded, theirs = load(folder, variant=variant), diffusers.UNet2DConditionModel.from_pretrained(
        folder / "unet", variant=variant
    )  # fmt: skip
    assert equal(loaded.unet.state_dict(), theirs.float().state_dict())
    assert equal(loaded.vae.state_dict(), load(checkpoint).vae.state_dict())


def test_pipeline_of_a_variant_alone(tmp_path: Path) -> None:
    """Both libraries' names, in a folder that has nothing else."""
    whole = load(save_pipeline("sdxl", tmp_path / "whole"))
    folder = save_pipeline("sdxl", tmp_path / "half", variant="fp16", max_shard_size="100KB")
    assert not [path for path in folder.rglob("*.safetensors") if ".fp16" not in path.name]
    assert len(list(folder.glob("unet/*.safetensors"))) > 1
    for loaded in (load(folder), load(folder, variant="fp16")):
        for part, network in whole.networks.items():
            assert equal(network.state_dict(), loaded.networks[part].state_dict())


def test_what_is_stored_in_this_dtype_is_not_copied(tmp_path: Path) -> None:
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).half()}, tmp_path / "x.safetensors")
    tensors = open_weights("unet", tmp_path / "x.safetensors")
    first, again = tensors["a"].read(torch.float32), tensors["a"].read()
    assert first.data_ptr() == again.data_ptr()
    assert tensors["a"].part(1, 2).read().data_ptr() == first.data_ptr() + 3 * first.element_size()
    assert tensors["a"].transposed().read().tolist() == first.T.tolist()
    assert tensors["b"].read(torch.float32).tolist() == [1.0] * 3
    assert tensors["b"].read().dtype == torch.float16


# In a process of its own: memory that earlier tests have freed would hide a part of what is measured.
PEAK = """
import re, sys
from pathlib import Path
import torch
from torch import nn

from ldmrt.model.weights.weights import Tensors, fill, match, open_weights

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

path, layers, width, asked = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), getattr(torch, sys.argv[4])
with torch.device("meta"):
    network = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
Path("/proc/self/clear_refs").write_text("5")
before = peak()
tensors = Tensors(open_weights("unet", path), path)
fill("unet", network, match("unet", network, tensors), tensors, asked)
print(peak() - before)
assert {value.dtype for value in network.state_dict().values()} == {asked}
assert all(bool((value == 0.5).all()) for value in network.state_dict().values())
"""


@pytest.mark.slow(minutes=0.08)
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK),
    reason="this kernel does not let a process set its peak memory back, so no peak can be measured",
)
@pytest.mark.parametrize(("stored", "asked"), [(torch.float32, torch.float32), (torch.float16, torch.float32)])
def test_peak_of_memory_is_what_is_not_in_the_file(stored: torch.dtype, asked: torch.dtype, tmp_path: Path) -> None:
    layers, width = 32, 1024
    half = torch.full((1, 1), 0.5).expand(width, width)
    write("unet", tmp_path / "x.safetensors", {f"{i}.weight": half for i in range(layers)}, stored)
    words = [tmp_path / "x.safetensors", layers, width, str(asked).removeprefix("torch.")]
    ran = subprocess.run([sys.executable, "-c", PEAK, *map(str, words)], capture_output=True, text=True, check=True)
    once = layers * width * width * asked.itemsize / 1024 if stored != asked else 0
    # Beside weights that are converted one tensor as it is stored, and what Python keeps. A second copy would be 64 MiB
    # more; a tenth less may be found where the allocator has a little left.
    assert 0.9 * once <= int(ran.stdout) <= once + 20 * 1024


def test_header_of_odd_length(tmp_path: Path) -> None:
    """The format asks for no alignment; only its own writers pad."""
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    text += b" " * (5 - len(text) % 4)
    assert len(text) % 4 == 1
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0\0\x80\x3f\0\0\0\x40")
    assert load_file(tmp_path / "x.safetensors")["a"].tolist() == [1.0, 2.0]
    assert read(tmp_path / "x.safetensors")["a"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_every_floating_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {"a": torch.tensor([0.5, -2.0, 0.0]).to(dtype), "scalar": torch.tensor(1.5).to(dtype)}
    save_file(state, tmp_path / "x.safetensors")
    found = read(tmp_path / "x.safetensors", torch.float32)
    assert (found["a"].tolist(), found["scalar"].tolist()) == ([0.5, -2.0, 0.0], 1.5)
    assert finite(read(tmp_path / "x.safetensors")["a"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_finite(dtype: torch.dtype, bad: float) -> None:
    values = torch.zeros(1000)
    assert finite(values.to(dtype))
    for place in (0, 500, 999):
        spoilt = values.clone()
        spoilt[place] = bad
        assert not finite(spoilt.to(dtype))
    assert finite(torch.finfo(torch.float16).max * torch.ones(1000, dtype=torch.float16))  # whose sum is infinite
    assert finite(torch.ones(0))


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (
            1e5,
            torch.float16,
            r"0.weight in .*x.safetensors is not .* torch.float16\n  try: torch.float32 holds it",
        ),
        (torch.nan, torch.float16, r"not finite in torch.float16\n  try: use another copy"),
        (torch.inf, None, r"not finite in torch.float32\n  try: use another copy"),
    ],
)
def test_values_that_are_not_finite(value: float, dtype: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"0.weight": torch.full((1, 1), value)}, path)
    network, tensors = nn.Sequential(nn.Linear(1, 1, bias=False)), Tensors(open_weights("unet", path), path)
    with pytest.raises(LdmrtError, match=message):
        fill("unet", network, match("unet", network, tensors), tensors, dtype)


def test_write(tmp_path: Path) -> None:
    """What safetensors itself reads, in every dtype, whatever lies in memory how."""
    state = {"b": torch.arange(6.0).reshape(2, 3).T, "a": nn.Parameter(torch.tensor(2.5)), "long name": torch.ones(1)}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        write("unet", tmp_path / "x.safetensors", state, dtype)
        assert equal(load_file(tmp_path / "x.safetensors"), {k: v.detach().to(dtype) for k, v in state.items()})
    before = (tmp_path / "x.safetensors").read_bytes()
    with pytest.raises(LdmrtError, match=r"unet: b is not finite in torch.float16\n  try: save as float32"):
        write("unet", tmp_path / "x.safetensors", {**state, "b": torch.tensor([1e5])}, torch.float16)
    assert (tmp_path / "x.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
