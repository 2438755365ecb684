"""Ranges of activations, which OpenVINO needs to compute a component in int8: as a bundle keeps them.

One file of the bundle holds those of all components. It is named by its content, and the manifest lists it.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.errors import BundleError, LdmrtError
from ldmrt.runtime.files.reading import JsonObject, read_json

FILE = re.compile(r"int8-([0-9a-f]{12})\.json")  # digits of its SHA-256
Range = tuple[float, float]  # the smallest and the largest value


@dataclass(frozen=True)
class Ranges:
    """Holds what the modules of a component take that compute in int8."""

    files: Mapping[str, str]  # SHA-256 of the network that was calibrated and of its weights, by their names
    inputs: Mapping[str, Range]  # by the module's path within the network


def network_files(bundle: Bundle, component: str) -> dict[str, str]:
    """Return the SHA-256 of a component's network and of its weights, by their names in the bundle."""
    names = (path.relative_to(bundle.path).as_posix() for path in (bundle.model(component), *bundle.weights(component)))
    return {name: str(bundle.manifest["files"][name]["sha256"]) for name in names}


def stored_in(manifest: JsonObject) -> str | None:
    """Return the name of the file that holds the ranges of a bundle; None where it has none."""
    return next(filter(FILE.fullmatch, manifest.get("files", {})), None)


def with_ranges(bundle: Bundle, content: bytes) -> Bundle:
    """Return a bundle whose manifest lists a file of ranges in place of an earlier one; nothing is written.

    Args:
        bundle: The opened bundle.
        content: Of the file, as `to_bytes` makes it.
    """
    files = {name: entry for name, entry in bundle.manifest["files"].items() if not FILE.fullmatch(name)}
    digest = hashlib.sha256(content).hexdigest()
    files[f"int8-{digest[:12]}.json"] = {"size": len(content), "sha256": digest}
    return replace(bundle, manifest={**bundle.manifest, "files": files})


def to_bytes(tables: Mapping[str, Ranges]) -> bytes:
    """Return the content of the file that holds the ranges of these components."""
    return json.dumps({name: asdict(table) for name, table in tables.items()}, indent=1, sort_keys=True).encode()


def read_ranges(bundle: Bundle) -> dict[str, Ranges]:
    """Read the ranges of a bundle's components.

    Raises:
        BundleError: The bundle has none, they are damaged, or they are of other networks.
    """
    name, hint = stored_in(bundle.manifest), f"ldmrt verify {bundle.path} --against CHECKPOINT --compute int8 --store"
    if name is None:
        raise BundleError("int8", f"{bundle.path} holds no ranges of activations for int8", hint=hint)
    try:
        tables = {component: _table(row) for component, row in read_json("int8", bundle.contents.file(name)).items()}
    except (LdmrtError, KeyError, TypeError, ValueError, AttributeError) as error:
        found = error.found if isinstance(error, LdmrtError) else f"{error!r:.200}"
        raise BundleError("int8", f"cannot read the ranges in {name}", found=found, hint=hint) from None
    for component, table in tables.items():
        if component not in bundle.components or table.files != network_files(bundle, component):
            problem = f"the ranges in {name} are those of another {component:.100}"
            raise BundleError("int8", problem, hint=hint)
    return tables


def _table(row: JsonObject) -> Ranges:
    """Read the ranges of a component from plain values; ValueError or TypeError where they are none."""
    if row.keys() != {"files", "inputs"}:
        raise ValueError(f"the keys {', '.join(row)}"[:200])
    files = {str(name): str(digest) for name, digest in row["files"].items()}
    return Ranges(files, {str(path): _range(path, ends) for path, ends in row["inputs"].items()})


def _range(path: str, ends: object) -> Range:
    """Read a range. It holds zero, as int8 has to have a zero that is exact."""
    if not isinstance(ends, list) or [type(end) for end in ends] != [float, float]:
        raise TypeError(f"{path:.100}: {ends!r:.80}")
    low, high = ends
    if not (math.isfinite(low) and math.isfinite(high) and low <= 0 <= high and high - low > 0):
        raise ValueError(f"{path:.100}: {low} to {high}")
    return low, high
