"""A checkpoint in the precisions that its components are exported in."""

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import nn

from ldmrt.export.components.component import PRECISIONS
from ldmrt.export.components.table import components
from ldmrt.export.graph.naming import module_path
from ldmrt.model.checkpoint.checkpoint import Checkpoint
from ldmrt.model.weights.mapping import release
from ldmrt.model.weights.unread import cast_later, leave_unread, numbers
from ldmrt.model.weights.weights import finite
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.graphs import DECODER_FP32, inside
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.nearest import check_known, suggestion
from ldmrt.runtime.parity.tolerances import COMPONENT

from .islands import Islands, known, measure, raise_islands, smallest_safe_module
from .search import raise_until_accurate

Precisions = Mapping[str, str]  # by component; "" is that of all others
Stored = Mapping[str, torch.dtype | None]  # by network; None is what its file holds
Load = Callable[[Stored], tuple[Checkpoint, JsonObject]]


def parse(text: str) -> dict[str, str]:
    """Read a precision option: "fp16", "unet=fp16,vae_decoder=fp16" or "fp16,vae_decoder=fp32".

    Args:
        text: COMPONENT=PRECISION for some components, and perhaps one precision for all others, which is else fp32.

    Returns:
        Precisions by component; "" stands for all others.

    Raises:
        LdmrtError: A precision is none of fp32, fp16 and bf16.
    """
    precisions = {"": "fp32"}
    for word in text.split(","):
        name, equals, precision = word.strip().rpartition("=")
        if precision not in PRECISIONS or (equals and not name):
            expected = f"{' or '.join(PRECISIONS)}, or COMPONENT={'|'.join(PRECISIONS)} several times"
            problem = f"invalid precision {text!r}{suggestion(precision, PRECISIONS)}"
            raise LdmrtError("precision", problem, expected=expected, found=word)
        precisions[name] = precision
    return precisions


def choose_precisions(
    load: Load, wanted: Precisions, *, late: bool = False, tell: Callable[[str], object] = lambda text: None
) -> tuple[Checkpoint, JsonObject, Islands]:
    """Load a checkpoint in these precisions, with float32 islands where a narrow type overflows or errs too much.

    A component that is one island as a whole becomes fp32, unless its precision was named.

    Args:
        load: Loads the checkpoint with each network in a dtype, or as it is stored.
        wanted: Precisions by component, as `parse` returns them.
        late: Weights are cast when they are written, so that memory never holds them all. The networks of the
            checkpoint can then be exported, but compute nothing; see `leave_unread`.
        tell: Is given what is done next, for hours pass where networks are large.

    Returns:
        The checkpoint, the manifest's entries about merged weights, and the islands with the reason of each.

    Raises:
        LdmrtError: A component is unknown, a weight is not finite in its precision, or the tolerance cannot be held.
    """
    loaded, merged = _read(load, wanted, late=late)
    kinds = _kinds(loaded, wanted)
    found = {name: why for name, why in known(loaded).items() if kinds[name] == "fp16" and name not in wanted}
    narrow = [name for name, kind in kinds.items() if kind != "fp32" and name not in found]
    halves = any(kinds[name] == "fp16" for name in narrow)  # bfloat16 has float32's range
    measured = measure(loaded, narrow, overflowing=halves, tell=tell) if narrow else {}
    for name, one in measured.items():
        modules = smallest_safe_module(one.ranges) if kinds[name] == "fp16" else {}
        if "" not in modules:
            tell(f"{name}: its error in {kinds[name]}")
            modules = raise_until_accurate(one, kinds[name], modules, COMPONENT[kinds[name]].limit)
        if modules:
            found[name] = modules
    if whole := {name: "fp32" for name, modules in found.items() if "" in modules}:
        del loaded, measured
        return *apply_precisions(load, {**wanted, **whole}, found, late=late), found
    _narrow(loaded, kinds, found, late=late)
    return loaded, merged, found


def apply_precisions(
    load: Load, wanted: Precisions, islands: Islands, *, late: bool = False
) -> tuple[Checkpoint, JsonObject]:
    """Load a checkpoint in these precisions with these islands, without measuring; `late` as in `choose_precisions`."""
    loaded, merged = _read(load, wanted, late=late)
    _narrow(loaded, _kinds(loaded, wanted), islands, late=late)
    return loaded, merged


def _read(load: Load, wanted: Precisions, *, late: bool) -> tuple[Checkpoint, JsonObject]:
    """Load a checkpoint before its weights are narrowed: islands then keep the weights as they are stored.

    A float32 decoder beside the fp16 one needs a second copy of the autoencoder. Weights that are cast late all stay as
    they are stored.
    """
    networks = {name: None if kind != "fp32" else torch.float32 for name, kind in wanted.items()}
    both = {wanted.get(name, wanted[""]) for name in ("vae_decoder", "vae_encoder")}
    networks["vae"] = torch.float32 if "fp32" in both or DECODER_FP32 in wanted else None  # then one may be narrowed
    with leave_unread() if late else contextlib.nullcontext():
        loaded, merged = load({"": None} if late else networks)
    return _with_spare(loaded) if DECODER_FP32 in wanted else loaded, merged


def _with_spare(checkpoint: Checkpoint) -> Checkpoint:
    """Add a copy of the autoencoder, whose weights are shared until they are cast."""
    vae = checkpoint.vae
    assert vae is not None
    shared: dict[int, object] = {id(one): nn.Parameter(one.data, one.requires_grad) for one in vae.parameters()}
    shared |= {id(one): one.data for one in vae.buffers()}
    return replace(checkpoint, spare=copy.deepcopy(vae, shared))


def _kinds(checkpoint: Checkpoint, wanted: Precisions) -> dict[str, str]:
    """Return the precision of every component."""
    names = list(components(checkpoint))
    check_known("precision", filter(None, wanted), names)
    return {name: wanted.get(name, wanted[""]) for name in names}


def _narrow(checkpoint: Checkpoint, kinds: Mapping[str, str], islands: Islands, *, late: bool) -> None:
    """Cast all weights in place, at once or late, except those in islands."""
    inner = {name: modules for name, modules in islands.items() if "" not in modules}
    parts = components(checkpoint)
    for name, part in parts.items():
        for path, module in part.module.named_modules():
            wide = any(inside(module_path(path), island) for island in inner.get(name, ()))
            dtype = torch.float32 if wide else PRECISIONS[kinds[name]]
            for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                if tensor.is_floating_point() and tensor.dtype != dtype:
                    if late and dtype == torch.float32:  # which holds all that the others do
                        cast_later(tensor, dtype)
                        continue
                    narrowed = _cast(name, f"{path}.{key}".lstrip("."), numbers(tensor), dtype)
                    release(tensor.data)
                    if late:
                        cast_later(tensor, dtype)
                    else:
                        tensor.data = narrowed
    raise_islands(parts, inner)


def _cast(component: str, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cast a weight and check that it is finite: a merged LoRA may exceed the largest half."""
    narrowed = tensor.to(dtype)
    if not finite(narrowed):
        hint = f"--precision {component}=fp32, or a smaller weight of what is merged"
        raise LdmrtError(component, f"{name} is not finite in {dtype}".replace("torch.", ""), hint=hint)
    return narrowed


def precisions(bundle: Bundle) -> dict[str, str]:
    """Return the precisions of a bundle's components."""
    return {"": "fp32", **{name: bundle.precision(name) for name in bundle.components}}


def islands(bundle: Bundle) -> Islands:
    """Return the float32 islands of a bundle's components."""
    return {name: dict(row["islands"]) for name, row in bundle.manifest["components"].items() if row.get("islands")}
