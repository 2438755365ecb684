"""Makes a certificate of comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.certificate import Certificate, Islands
from ldmrt.runtime.bundle.coverage import covered_files, manifest_digest
from ldmrt.runtime.bundle.recording import Recording, UpscaleRecording
from ldmrt.runtime.host import processor, versions

from .compare import Comparison
from .tolerances import tolerances


def certify(
    measured: Sequence[Comparison],
    bundle: Bundle,
    reference: Recording | UpscaleRecording,
    origin: Sequence[str] = (),
    computes: Sequence[str] = ("fp32",),
    islands: Mapping[str, Islands] = MappingProxyType({}),
    *,
    low_memory: bool = False,
) -> Certificate:
    """Make the certificate of measurements, with all that they were made on.

    `origin` lists what is not of the checkpoint, `computes` the precisions that the backends computed in, and `islands`
    what they kept in float32. With `low_memory` neither side had all weights in memory at once.
    """
    rows = bundle.manifest.get("components", {})
    about = {
        "request": reference.options,
        **({"low_memory": True} if low_memory else {}),
        "tolerances": {one: {name: asdict(t) for name, t in tolerances(bundle, one).items()} for one in computes},
        "bundle": covered_files(bundle.manifest),
        "manifest": manifest_digest(bundle.manifest),
        "checkpoint": {name: {key: row.get(key) for key in ("weights", "config")} for name, row in rows.items()},
        "versions": versions(),
        "hardware": processor(),
    }
    return Certificate(
        tuple(one for chunk in measured for one in chunk.figures),
        tuple(one for chunk in measured for one in chunk.drifts),
        tuple(one for chunk in measured for one in chunk.pictures),
        about,
        tuple(origin),
        tuple(one for chunk in measured for one in chunk.costs),
        tuple(one for chunk in measured for one in chunk.left_out),
        islands,
        tuple(one for chunk in measured for one in chunk.times),
    )
