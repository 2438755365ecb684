"""What a certificate covers: every file that an image depends on, and what the manifest says of the networks."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ldmrt.runtime.errors import printable

from .manifest import MANIFEST, REFERENCE

APART = (
    "schema",
    "made_by",
    "files",
    "certificate",
    "memory",
)  # of the manifest's keys: nothing computed depends on them
NAMED = 3  # files that are named of those that have changed
NETWORKS_ALONE = "its certificate is an old one that covers the networks alone, not tokenizers, scheduler and configs"


def covered_files(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of each file of a bundle, but for the reference, which comes with the certificate."""
    files = manifest.get("files", {})
    return {name: entry["sha256"] for name, entry in files.items() if not REFERENCE.fullmatch(name)}


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what a manifest says beside its files: inputs, outputs, precisions, merged weights."""
    said = {key: value for key, value in manifest.items() if key not in APART}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def is_partial(about: Mapping[str, Any]) -> bool:
    """Whether a certificate was made before certificates covered more than the networks."""
    return "manifest" not in about


def changes(manifest: Mapping[str, Any], stored: Mapping[str, Any], about: Mapping[str, Any]) -> list[str]:
    """Say what of a bundle is not what was certified. `stored` is the certificate as the manifest holds it, `about`
    what it was measured on.
    """
    now, then = covered_files(manifest), about["bundle"]
    changed = [f"{name} is not the file that was certified" for name, one in then.items() if now.get(name) != one]
    if not is_partial(about):
        changed += [f"{name} is not among the files that were certified" for name in now if name not in then]
    said = [*changed[:NAMED], *([f"and {len(changed) - NAMED} more files are not"] if changed[NAMED:] else [])]
    if not is_partial(about) and about["manifest"] != manifest_digest(manifest):
        said.append(f"{MANIFEST} does not say of the networks what it said when they were certified")
    name = str(stored.get("reference"))
    digest, named = str(manifest["files"].get(name, {}).get("sha256")), REFERENCE.fullmatch(name)
    if named is None or not digest.startswith(named[1]) or stored.get("reference_sha256", digest) != digest:
        said.append(f"{name} is not the reference that was certified")
    return [printable(line) for line in said]
