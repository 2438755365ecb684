"""The files that a certificate covers: all that an image depends on, and the manifest's statements on networks."""

import hashlib
import json

from ldmrt.runtime.errors import printable
from ldmrt.runtime.files.reading import JsonObject

from .manifest import MANIFEST, REFERENCE

APART = ("schema", "made_by", "files", "certificate", "memory", "then")  # keys of the manifest that no image depends on
NAMED = 3  # changed files that are named
NETWORKS_ALONE = "its certificate is an old one that covers the networks alone, not tokenizers, scheduler and configs"


def covered_files(manifest: JsonObject) -> dict[str, str]:
    """Return the SHA-256 of each file of a bundle, except of the recording, which comes with the certificate."""
    files = manifest.get("files", {})
    return {name: entry["sha256"] for name, entry in files.items() if not REFERENCE.fullmatch(name)}


def manifest_digest(manifest: JsonObject) -> str:
    """Return the SHA-256 of a manifest without its files: inputs, outputs, precisions, merged weights."""
    covered = {key: value for key, value in manifest.items() if key not in APART}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


def is_partial(about: JsonObject) -> bool:
    """Tell whether a certificate was made before certificates covered more than the networks."""
    return "manifest" not in about


def changes(manifest: JsonObject, stored: JsonObject, about: JsonObject) -> list[str]:
    """List what has changed in a bundle since it was certified.

    Args:
        manifest: The manifest of the bundle as it is now.
        stored: The certificate as the manifest holds it.
        about: `Certificate.about`: the hashes of the files that were measured.
    """
    now, then = covered_files(manifest), about["bundle"]
    changed = [f"{name} is not the file that was certified" for name, digest in then.items() if now.get(name) != digest]
    if not is_partial(about):
        changed += [f"{name} is not among the files that were certified" for name in now if name not in then]
    lines = [*changed[:NAMED], *([f"and {len(changed) - NAMED} more files are not"] if changed[NAMED:] else [])]
    if not is_partial(about) and about["manifest"] != manifest_digest(manifest):
        lines.append(f"{MANIFEST} describes the networks differently than when they were certified")
    name = str(stored.get("reference"))
    digest, named = str(manifest["files"].get(name, {}).get("sha256")), REFERENCE.fullmatch(name)
    if named is None or not digest.startswith(named[1]) or stored.get("reference_sha256", digest) != digest:
        lines.append(f"{name} is not the reference that was certified")
    return [printable(line) for line in lines]
