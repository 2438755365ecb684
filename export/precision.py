"""A checkpoint in the precisions that its components are exported in."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ldmrt.model import Checkpoint
from ldmrt.runtime import Bundle, LdmrtError
from ldmrt.runtime.decode import WIDE

from .components import components
from .islands import Islands, find, raise_islands

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
Precisions = Mapping[str, str]  # by component; "" is that of all others
Load = Callable[[Mapping[str, torch.dtype]], tuple[Checkpoint, dict[str, Any]]]  # by network


def parse(text: str) -> dict[str, str]:
    """ "fp16", "unet=fp16,vae_decoder=fp16", "fp16,vae_decoder=fp32": others are what stands alone, or fp32."""
    precisions = {"": "fp32"}
    for word in text.split(","):
        name, equals, precision = word.strip().rpartition("=")
        if precision not in PRECISIONS or (equals and not name):
            expected = f"{' or '.join(PRECISIONS)}, or COMPONENT={'|'.join(PRECISIONS)} several times"
            raise LdmrtError("precision", f"impossible precision {text!r}", expected=expected, found=word)
        precisions[name] = precision
    return precisions


def settle(load: Load, wanted: Precisions) -> tuple[Checkpoint, dict[str, Any], Islands]:
    """Load a checkpoint in these precisions, with islands of float32 where halves would overflow, and say which. A
    component that is one island all over is of fp32.
    """
    loaded, merged = lower(load, wanted, {})
    found = find(loaded)
    if whole := {name: "fp32" for name, modules in found.items() if "" in modules}:
        del loaded
        loaded, merged = lower(load, {**wanted, **whole}, {})
    raise_islands(components(loaded), {name: modules for name, modules in found.items() if name not in whole})
    return loaded, merged, found


def lower(load: Load, wanted: Precisions, known: Islands) -> tuple[Checkpoint, dict[str, Any]]:
    """The same with islands that are known. Who wants a `WIDE` decoder gets a spare autoencoder."""
    default = wanted[""]
    networks = {name: PRECISIONS[kind] for name, kind in wanted.items() if not name.startswith("vae_")}
    both = {wanted.get(name, default) for name in ("vae_decoder", "vae_encoder", *({WIDE} & wanted.keys()))}
    networks["vae"] = PRECISIONS["fp32" if "fp32" in both else both.pop()]  # of both; then one may be halved
    loaded, merged = load(networks)
    if WIDE in wanted:
        loaded = replace(loaded, spare=copy.deepcopy(loaded.vae))
    parts = components(loaded)
    if unknown := [name for name in wanted if name and name not in parts]:
        raise LdmrtError("precision", f"no component {unknown[0]!r}", expected=", ".join(parts))
    for name, part in parts.items():
        part.module.to(PRECISIONS[wanted.get(name, default)])
    raise_islands(components(loaded), {name: modules for name, modules in known.items() if "" not in modules})
    return loaded, merged


def precisions(bundle: Bundle) -> dict[str, str]:
    """Those of a bundle."""
    return {"": "fp32", **{name: bundle.precision(name) for name in bundle.components}}


def islands(bundle: Bundle) -> Islands:
    """Those of a bundle."""
    return {name: dict(row["islands"]) for name, row in bundle.manifest["components"].items() if row.get("islands")}
