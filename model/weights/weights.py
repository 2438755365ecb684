"""Map weights on disk into memory, check them, put them into a network tensor by tensor, and write them."""

import contextlib
import json
import mmap
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.files.reading import JsonObject, parse_json, plain_file, read_json
from ldmrt.runtime.files.recognise import refuse_gguf
from ldmrt.runtime.files.writing import write_atomically

from .lazy import Lazy, Place, as_it_is
from .mapping import forget, map_file, release
from .pickled import lazy_tensor, load_pickle, unwrapped
from .quantized import computed_dtype, unscaled
from .unread import leaving, numbers, unread

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
NUMBERS = DTYPES | {"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8}  # no weights, but notes on them
SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
Notes = JsonObject  # the metadata that a file holds beside its tensors
LFS = b"version https://git-lfs"  # what stands for a large file that was not fetched
POSITIONS = "embeddings.position_ids"  # 0, 1, 2 ...: transformers of old saved it, though it is no weight
PROJECTIONS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_PROJECTION = re.compile(rf"(\.attentions\.\d+\.)({'|'.join(PROJECTIONS)})\.")
N = TypeVar("N", bound=nn.Module)


def plain(key: str) -> Place:
    """Return the place of a network's weight in a file whose names have gone through `bare`."""
    return bare(key), as_it_is


@dataclass(frozen=True)
class Tensors:
    """Holds the tensors of one network, as a file names them."""

    named: Mapping[str, Lazy]
    where: Path
    place: Callable[[str], Place] = plain  # of a key of the network


def bare(key: str) -> str:
    """Spell a key as it is written today.

    transformers 5 dropped the prefix of a text encoder's weights, and networks of 2022 have other names for the
    projections of attention over the pixels.
    """
    key = key.removeprefix("text_model.")
    return OLD_PROJECTION.sub(lambda found: f"{found[1]}{PROJECTIONS[found[2]]}.", key)


def open_weights(component: str, path: Path) -> dict[str, Lazy]:
    """Describe the tensors of a file, or of all the shards of an index; none is read yet."""
    return open_noted(component, path)[0]


def open_noted(component: str, path: Path) -> tuple[dict[str, Lazy], Notes]:
    """Describe the tensors of a file, whatever its name ends in, and return its metadata."""
    if path.suffix == ".json":
        return unscaled(component, _open_shards(component, path), path), {}
    opener = _open_safetensors if is_safetensors(component, path) else _open_pickle
    tensors, notes = opener(component, path)
    return unscaled(component, tensors, path), notes


def is_safetensors(component: str, path: Path) -> bool:
    """Tell safetensors from pickles by their first bytes; by the name where those are of neither. GGUF is refused."""
    refuse_gguf(component, path)
    with plain_file(component, path).open("rb") as file:
        begin = file.read(9)
    if begin[8:] == b"{" and int.from_bytes(begin[:8], "little") <= path.stat().st_size:
        return True
    if begin.startswith((b"PK\3\4", b"\x80")):
        return False
    if path.suffix not in SUFFIXES:
        raise LdmrtError(component, f"cannot read {path}", expected=" or ".join(SUFFIXES))
    return path.suffix == ".safetensors"


def _open_shards(component: str, path: Path) -> dict[str, Lazy]:
    """Describe the tensors of all shards that an index names."""
    places = read_json(component, path).get("weight_map")
    names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
    tensors: dict[str, Lazy] = {}
    for name in names:
        if Path(name).name != name or name.endswith(".json"):
            raise LdmrtError(component, f"{path} names a shard that is not beside it", found=name)
        shard = path.parent / name
        opener = _open_safetensors if is_safetensors(component, shard) else _open_pickle
        tensors |= opener(component, shard)[0]
    if not names:
        raise LdmrtError(component, f"cannot read {path}", expected="a weight_map that names the shards")
    return tensors


def _open_safetensors(component: str, path: Path) -> tuple[dict[str, Lazy], Notes]:
    """Describe the tensors of a safetensors file, and return its metadata."""
    try:
        with safe_open(path, "pt"), path.open("rb") as file:  # the library checks the header against the file
            size = int.from_bytes(file.read(8), "little")
            header = parse_json(component, f"the header of {path}", file.read(size))
            content = map_file(file)
    except Exception as error:  # safetensors raises its own class
        raise _unreadable(component, path, "a whole safetensors file", error) from None
    notes = header.pop("__metadata__", None) or {}
    tensors = {
        key: _mapped(content, entry["dtype"], entry["shape"], *(8 + size + offset for offset in entry["data_offsets"]))
        for key, entry in header.items()
    }
    return tensors, notes


def _mapped(content: mmap.mmap, dtype: str, shape: list[int], begin: int, end: int) -> Lazy:
    """Describe a tensor that lies between two bytes of a mapped file."""
    kind = NUMBERS.get(dtype)

    def view() -> Tensor:
        assert kind is not None
        if begin == end:
            return torch.empty(shape, dtype=kind)
        if begin % kind.itemsize:  # a header of odd length
            return torch.frombuffer(bytearray(content[begin:end]), dtype=kind).reshape(shape)
        return torch.frombuffer(content, dtype=kind, count=(end - begin) // kind.itemsize, offset=begin).reshape(shape)

    return Lazy(tuple(shape), DTYPES.get(dtype), view, partial(forget, content, begin, end))


def _open_pickle(component: str, path: Path) -> tuple[dict[str, Lazy], Notes]:
    """Describe the tensors in a file of torch.save, none of whose code is run."""
    try:
        state = load_pickle(component, path)
    except LdmrtError:
        raise
    except Exception as error:  # of pickles and archives, in many classes
        if not (code := re.search(r"GLOBAL \S+|Trying to call.*|Can only (create|build).*", str(error))):
            raise _unreadable(component, path, "a whole file of torch.save", error) from None
        raise LdmrtError(
            component,
            f"{path} can only be unpickled, which would run its code",
            expected="a file of tensors alone",
            found=code[0],
            hint="a safetensors file of the same weights",
        ) from None
    state, notes = unwrapped(component, state, path)
    items = state.items() if isinstance(state, dict) else ()
    tensors = {str(key): lazy_tensor(component, key, value, path) for key, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise LdmrtError(component, f"cannot read {path}", expected="a dict of tensors", found=type(state).__name__)
    return tensors, notes


def _unreadable(component: str, path: Path, expected: str, error: Exception) -> LdmrtError:
    """Return the error for a damaged file, which may be the pointer that Git LFS leaves in its place."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            return LdmrtError(component, f"cannot read {path}", found="a pointer of Git LFS", hint="git lfs pull")
    reason = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))  # after advice not to be followed
    return LdmrtError(
        component, f"cannot read {path}", expected=expected, found=reason[1] if reason else first_line(error)
    )


def match(component: str, network: nn.Module, tensors: Tensors) -> dict[str, Lazy]:
    """Find the tensor for each of a network's weights: none missing, none left, each of the right shape.

    Args:
        component: The part of the checkpoint that errors name.
        network: A network, which may be on the meta device.
        tensors: The tensors of a file, and where it keeps each of the network's weights.

    Returns:
        The tensors by the network's own keys, of the network's shapes; none is read yet.

    Raises:
        LdmrtError: A tensor is missing, unexpected, of another shape, or holds no floating-point numbers.
    """
    state = network.state_dict()
    places = {key: tensors.place(key) for key in state}
    names = {name for name, _ in places.values()}
    present, where = tensors.named.keys() - {POSITIONS}, tensors.where
    if missing := sorted(names - present):
        raise LdmrtError(component, f"{len(missing)} tensors are missing from {where}", expected=missing[0])
    if surplus := sorted(present - names):
        raise LdmrtError(component, f"{where} holds {len(surplus)} unexpected tensors", found=surplus[0])
    matched = {}
    for key, (name, change) in places.items():
        tensor = tensors.named[name]
        expected, shape = tuple(state[key].shape), change(tensor).shape
        if shape != expected:
            raise LdmrtError(component, f"wrong shape of {name} in {where}", expected=expected, found=shape)
        if tensor.dtype is None:
            raise LdmrtError(component, f"{name} in {where} holds no floating-point numbers")
        matched[key] = change(tensor)
    return matched


def fill(component: str, network: N, matched: Mapping[str, Lazy], tensors: Tensors, dtype: torch.dtype | None) -> N:
    """Put tensors in the place of a network's, which may be on the meta device.

    One is read at a time. Those that are stored as `dtype` stay in the file's mapping and take no memory until they
    are used; within `leave_unread` that holds of all large ones.

    Args:
        component: The part of the checkpoint that errors name.
        network: The network, which is changed.
        matched: The tensor for each of its weights, see `match`.
        tensors: The file's tensors, for messages.
        dtype: The dtype of all weights; None keeps that of the file if it is one that networks compute in, and makes
            all float32 where the file has several. Within `leave_unread` each weight keeps its own.

    Returns:
        The same network, in eval mode.

    Raises:
        LdmrtError: A weight is infinite or NaN in this dtype.
    """
    state, kinds = {}, {key: dtype or computed_dtype(tensor) for key, tensor in matched.items()}
    several = len({*kinds.values()}) > 1 and not leaving()
    for key, tensor in matched.items():
        read = partial(tensor.read, torch.float32 if several else kinds[key])
        value = read()
        if not finite(value):
            problem = f"{tensors.place(key)[0]} in {tensors.where} is not finite in {value.dtype}"
            hint = f"{tensor.dtype} holds it" if finite(tensor.read()) else "use another copy of the checkpoint"
            raise LdmrtError(component, problem, hint=hint)
        release(value)
        state[key] = unread(value, read).data  # no view, as the dtype of a buffer's view cannot change
    network.load_state_dict(state, assign=True)
    for name, module in network.named_modules():
        for key, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                assert f"{name}.{key}".endswith(POSITIONS), f"{name}.{key} has no value"
                module.register_buffer(key, torch.arange(buffer.shape[-1])[None], persistent=False)
    return network.eval()


def finite(tensor: Tensor) -> bool:
    """Tell whether no value is infinite or NaN, in one pass that allocates nothing, unlike torch.isfinite."""
    if tensor.numel() == 0:
        return True
    whole = tensor.float() if tensor.dtype.itemsize == 1 else tensor
    return bool(torch.isfinite(torch.stack(torch.aminmax(whole))).all())


def write(component: str, path: Path, state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write a safetensors file, replaced at once, tensor by tensor: each is converted to `dtype`, or stays as it is.

    Raises:
        LdmrtError: A weight is infinite or NaN in `dtype`.
    """
    names = {dtype: name for name, dtype in NUMBERS.items()}
    dtypes = {key: dtype or value.dtype for key, value in state.items()}
    header: JsonObject = {"__metadata__": {"format": "pt"}}
    end, order = 0, sorted(state, key=lambda key: (-dtypes[key].itemsize, key))  # so that each begins at a multiple
    for key in order:
        begin, end = end, end + state[key].numel() * dtypes[key].itemsize
        header[key] = {"dtype": names[dtypes[key]], "shape": list(state[key].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with write_atomically(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            value = numbers(state[key]).to("cpu", dtypes[key]).contiguous()
            if dtype and not finite(value):
                raise LdmrtError(component, f"{key} is not finite in {dtype}", hint="save as float32")
            file.write(value.reshape(-1).view(torch.uint8).numpy().data)
