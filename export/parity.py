"""Is the bundle of this checkpoint, and what was measured of it kept in the manifest."""

import contextlib
import os

from ldmrt.model import Checkpoint
from ldmrt.model.checkpoint import write_json
from ldmrt.runtime.bundle import MANIFEST, Bundle
from ldmrt.runtime.certificate import Certificate
from ldmrt.runtime.files import sha256
from ldmrt.runtime.reference import Reference

from .bundle import fingerprint
from .components import components
from .facts import other_graph


def other_origin(bundle: Bundle, checkpoint: Checkpoint) -> list[str]:
    """What of the bundle was not made from this checkpoint, exactly: weights, configs, scheduler, tokenizer; and what
    of its graphs is not the checkpoint's.
    """
    differ = []
    for name, component in components(checkpoint).items():
        for key, value in fingerprint(component).items():
            if bundle.manifest["components"].get(name, {}).get(key) != value:
                differ.append(f"{key} of {name}")
        if name in bundle.components:
            differ += other_graph(component, bundle.model(name))
    if dict(bundle.scheduler) != checkpoint.scheduler:
        differ.append("scheduler")
    for folder, files in checkpoint.tokenizers.items():
        for name, content in files.items():
            path = bundle.path / folder / name
            if not path.is_file() or path.read_bytes() != content:
                differ.append(f"{folder}/{name}")
    return differ


def store(bundle: Bundle, made: Certificate, reference: Reference) -> None:
    """Keep a certificate in the manifest, and beside it what `ldmrt verify BUNDLE` replays without PyTorch.

    The reference is named by its content, so that the old manifest stays true until the new one is there.
    """
    old = bundle.manifest.get("certificate", {}).get("reference")
    work = bundle.path / ".reference.npz"
    reference.small.save(work)
    name = f"reference-{sha256(work)[:12]}.npz"
    os.replace(work, bundle.path / name)
    entry = {"size": (bundle.path / name).stat().st_size, "sha256": sha256(bundle.path / name)}
    files = {key: value for key, value in bundle.manifest["files"].items() if key != old}
    manifest = {**bundle.manifest, "certificate": {"reference": name, **made.to_json()}, "files": files | {name: entry}}
    write_json(bundle.path / MANIFEST, manifest)
    if old is not None and old != name:
        with contextlib.suppress(OSError):
            (bundle.path / old).unlink()
