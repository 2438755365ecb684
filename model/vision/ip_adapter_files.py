"""Read the files of IP-Adapters, and build the image projections that their tensors tell."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from ldmrt.model.checkpoint.checkpoint import on_meta
from ldmrt.model.networks.controls.ip_adapter import (
    HEAD,
    TOKENS,
    FullProjection,
    ImageProjection,
    Projection,
    Resampler,
)
from ldmrt.model.weights.lazy import Lazy, Place, as_it_is
from ldmrt.model.weights.pickled import lazy_tensor
from ldmrt.model.weights.tensor_files import read
from ldmrt.model.weights.weights import Tensors, is_safetensors, open_weights
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import plain_file
from ldmrt.runtime.files.recognise import refuse_gguf

WHERE = "ip_adapter"
PROJECTION, LAYERS = HALVES = ("image_proj", "ip_adapter")  # of a file
SUFFIXES = (".safetensors", ".bin")
# Adapters of other kinds, by a tensor of theirs.
OTHERS = {
    "image_proj.perceiver_resampler.proj_in.weight": "IP-Adapter FaceID Plus",
    "image_proj.norm.weight image_proj.proj.0.weight": "IP-Adapter FaceID",
    "ip_adapter.0.to_q_lora.down.weight": "IP-Adapter FaceID",
    "image_proj.time_proj.linear_1.weight": "IP-Adapter of Stable Diffusion 3",
    "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight": "IP-Adapter of FLUX.1",
}


@dataclass(frozen=True)
class AdapterFile:
    """Holds the tensors of an IP-Adapter's file: of its projection, and of the U-Net's layers, by their numbers."""

    path: Path
    projection: Mapping[str, Lazy]
    layers: Mapping[str, Lazy]


def open_ip_adapter(path: Path) -> AdapterFile:
    """Open an IP-Adapter's own file, or the only one in a folder; nothing is unpickled but tensors.

    Raises:
        LdmrtError: The file is missing, damaged, or of another kind.
    """
    path = plain_file(WHERE, _only(path) if path.is_dir() else path)
    named = open_weights(WHERE, path) if is_safetensors(WHERE, path) else _pickled(path)
    for marks, kind in OTHERS.items():
        if all(mark in named for mark in marks.split()):
            raise LdmrtError(WHERE, f"{path} is of another adapter", expected="IP-Adapter, plus, full face", found=kind)
    halves = [
        {key.removeprefix(f"{half}."): tensor for key, tensor in named.items() if key.startswith(f"{half}.")}
        for half in HALVES
    ]
    if not all(halves) or len(halves[0]) + len(halves[1]) < len(named):
        first = f"{len(named)} tensors, such as {min(named, default='none')}"
        raise LdmrtError(WHERE, f"{path} holds no IP-Adapter", expected=" and ".join(HALVES), found=first)
    return AdapterFile(path, *halves)


def _only(folder: Path) -> Path:
    """Return the one file of weights in a folder."""
    refuse_gguf(WHERE, folder)
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in SUFFIXES)
    if len({file.stem for file in files}) != 1:
        inside = ", ".join(file.name for file in files[:3]) or "none"
        raise LdmrtError(WHERE, f"no single file of weights in {folder}", expected="the adapter's file", found=inside)
    return files[-1]  # safetensors where both are there


def _pickled(path: Path) -> dict[str, Lazy]:
    """Describe the tensors of a file of torch.save: two dicts of tensors by their names, or one of all."""
    state, _ = read(WHERE, path)
    named: dict[str, Lazy] = {}
    for half, content in state.items() if isinstance(state, dict) else ():
        items = content.items() if isinstance(content, dict) else ()
        named |= {f"{half}.{key}": lazy_tensor(WHERE, key, t, path) for key, t in items if isinstance(t, Tensor)}
        if isinstance(content, Tensor):
            named[str(half)] = lazy_tensor(WHERE, str(half), content, path)
    return named


def projection_of(file: AdapterFile) -> tuple[Projection, Tensors]:
    """Build an adapter's image projection without weights, and describe where its file has them.

    Raises:
        LdmrtError: Its tensors are those of no projection that is known.
    """
    tensors = file.projection
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    try:
        build, place = _builder(shapes)
    except (KeyError, ValueError):
        expected, first = "the image projection of an IP-Adapter", f"tensors such as {min(shapes)}"
        raise LdmrtError(WHERE, f"{file.path} holds no IP-Adapter", expected=expected, found=first) from None
    with on_meta(WHERE):
        return build(), Tensors(tensors, file.path, place)


def _builder(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Callable[[], Projection], Callable[[str], Place]]:
    """Return what builds a projection of these tensors, and finds its weights; KeyError or ValueError: of no kind."""
    if "proj.weight" in shapes:
        outer, inner = shapes["proj.weight"]
        return lambda: ImageProjection(inner, outer // TOKENS), _linear
    if "proj.3.weight" in shapes:
        (width,), (inner, _) = shapes["proj.3.weight"], shapes["proj.0.weight"]
        return lambda: FullProjection(inner, width), _full
    (_, count, hidden), (_, inner), (width, _) = (
        shapes[key] for key in ("latents", "proj_in.weight", "proj_out.weight")
    )
    depth = len({key.split(".")[1] for key in shapes if key.startswith("layers.")})
    (queries, _), (outer, _) = shapes["layers.0.0.to_q.weight"], shapes["layers.0.1.1.weight"]
    resampler = partial(Resampler, hidden=hidden, heads=queries // HEAD, tokens=count, depth=depth, outer=outer)
    return lambda: resampler(inner, width), _resampler


def _linear(key: str) -> Place:
    return key.replace("image_embeds", "proj"), as_it_is


def _full(key: str) -> Place:
    places = {"ff.net.0.proj": "proj.0", "ff.net.2": "proj.2", "norm": "proj.3"}
    module, _, kind = key.rpartition(".")
    return f"{places[module]}.{kind}", as_it_is


def _resampler(key: str) -> Place:
    """Return the place of a resampler's weight: keys and values lie in one matrix."""
    if not key.startswith("layers."):
        return key, as_it_is
    _, block, *inner, kind = key.split(".")
    places = {
        "ln0": "0.norm1", "ln1": "0.norm2", "attn.to_q": "0.to_q", "attn.to_k": "0.to_kv", "attn.to_v": "0.to_kv",
        "attn.to_out.0": "0.to_out", "ff.0": "1.0", "ff.1.net.0.proj": "1.1", "ff.1.net.2": "1.3",
    }  # fmt: skip
    module = ".".join(inner)
    place = f"layers.{block}.{places[module]}.{kind}"
    if module in ("attn.to_k", "attn.to_v"):
        return place, lambda tensor: tensor.part(int(module == "attn.to_v"), 2)
    return place, as_it_is
