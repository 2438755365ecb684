"""What a certificate covers: every file that an image depends on, and what the manifest says of the networks."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from .manifest import REFERENCE

APART = ("schema", "made_by", "files", "certificate")  # of the manifest's keys: nothing computed depends on them
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


def changes(manifest: Mapping[str, Any], stored: Mapping[str, Any], about: Mapping[str, Any]) -> Iterator[str]:
    """Say what of a bundle is not what was certified. `stored` is the certificate as the manifest holds it, `about`
    what it was measured on.
    """
    now, then = covered_files(manifest), about["bundle"]
    yield from (
        f"{name} is not the file that was certified" for name, digest in then.items() if now.get(name) != digest
    )
    if not is_partial(about):
        yield from (f"{name} is not among the files that were certified" for name in now if name not in then)
        if about["manifest"] != manifest_digest(manifest):
            yield "the manifest says other things of the networks than when they were certified"
    name = str(stored.get("reference"))
    digest = str(manifest["files"].get(name, {}).get("sha256"))
    named = REFERENCE.fullmatch(name)
    if named is None or not digest.startswith(named[1]) or stored.get("reference_sha256", digest) != digest:
        yield f"{name} is not the reference that was certified"
