"""Keeps a certificate in a bundle's manifest."""

import hashlib

from ldmrt.model.checkpoint.checkpoint import write_json
from ldmrt.runtime.backends.openvino.ranges import FILE, stored_in, with_ranges
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.certificate import Certificate
from ldmrt.runtime.bundle.manifest import MANIFEST, REFERENCE
from ldmrt.runtime.bundle.recording import Recording, UpscaleRecording
from ldmrt.runtime.files.lock import bundle_lock
from ldmrt.runtime.files.writing import remove, write_atomically


def store(
    bundle: Bundle, made: Certificate, reference: Recording | UpscaleRecording, ranges: bytes | None = None
) -> None:
    """Keep a certificate in the manifest, and beside it the recording that `ldmrt verify` replays without PyTorch.

    The recording's file is named by its content, so that the old manifest stays true until the new one is written. So
    is that of the ranges of activations.

    Args:
        bundle: The opened bundle.
        made: Its certificate.
        reference: The recording that it is of.
        ranges: The content of a new file of ranges, with which it was measured; None leaves the bundle's own.

    Raises:
        LdmrtError: The bundle has changed since it was opened, so it is not the one that was measured.
    """
    with bundle_lock(bundle.path):
        bundle.check_unchanged()
        content = reference.small.to_bytes()
        digest = hashlib.sha256(content).hexdigest()
        name = f"reference-{digest[:12]}.npz"
        with write_atomically(bundle.path / name) as file:
            file.write(content)
        listed = bundle
        if ranges is not None:
            listed = with_ranges(bundle, ranges)
            with write_atomically(bundle.path / str(stored_in(listed.manifest))) as file:
                file.write(ranges)
        files = {key: value for key, value in listed.manifest["files"].items() if not REFERENCE.fullmatch(key)}
        files[name] = {"size": len(content), "sha256": digest}
        certificate = {"reference": name, "reference_sha256": digest, **made.to_json()}
        write_json(bundle.path / MANIFEST, {**bundle.manifest, "certificate": certificate, "files": files})
        for kind, pattern in (("reference-*.npz", REFERENCE), ("int8-*.json", FILE)):
            for other in bundle.path.glob(kind):
                if other.name not in files and pattern.fullmatch(other.name):
                    remove(other)
