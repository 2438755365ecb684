"""The bundle: a directory that diffusers and optimum recognise, with one manifest that says what it must contain.

A directory exported by optimum opens too; it has no manifest, so nothing can be checked.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import LdmrtError
from .files import sha256
from .specs import TensorSpec

MANIFEST = "ldmrt.json"
SCHEMA = 1
COMPONENTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
REQUIRED = ("text_encoder", "unet", "vae_decoder")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. `manifest` is empty where the directory has none."""

    path: Path
    manifest: Mapping[str, Any] = field(repr=False)
    scheduler: Mapping[str, Any] = field(repr=False)
    unet: Mapping[str, Any] = field(repr=False)  # the component's config.json
    vae: Mapping[str, Any] = field(repr=False)

    @classmethod
    def open(cls, path: Path, *, check: bool = True) -> "Bundle":
        """Read the manifest and the configs. `check` compares every file with its size and SHA-256."""
        if not path.is_dir():
            raise LdmrtError("bundle", f"no directory {path}", hint=f"ldmrt export CHECKPOINT {path}")
        manifest: dict[str, Any] = {}
        if (path / MANIFEST).is_file():
            manifest = _json(path / MANIFEST)
            check_manifest(manifest)
            if check:
                check_files(path, manifest["files"])
        for name in REQUIRED:
            if not (path / name / "model.onnx").is_file():
                raise LdmrtError("bundle", "missing file", expected=path / name / "model.onnx", hint="export again")
        return cls(
            path,
            manifest,
            _json(path / "scheduler" / "scheduler_config.json"),
            _json(path / "unet" / "config.json"),
            _json(path / "vae_decoder" / "config.json"),
        )

    def model(self, component: str) -> Path:
        """The ONNX file of a component."""
        return self.path / component / "model.onnx"

    @property
    def components(self) -> tuple[str, ...]:
        """What is here to run."""
        return tuple(name for name in COMPONENTS if self.model(name).is_file())

    @property
    def factor(self) -> int:
        """Pixels a latent, along one side."""
        widths = self.vae.get("block_out_channels")
        if not isinstance(widths, list) or not widths:
            raise LdmrtError("bundle", "vae_decoder/config.json has no block_out_channels", found=widths)
        return 2 ** (len(widths) - 1)

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return int(self.vae.get("latent_channels", 4))

    @property
    def scaling_factor(self) -> float:
        """The U-Net sees the autoencoder's latents times this."""
        return float(self.vae.get("scaling_factor") or 0.18215)

    @property
    def size(self) -> int:
        """The side, in pixels, that the model was trained on."""
        sample = self.unet.get("sample_size") or 64
        return int(sample) * self.factor

    def specs(self, component: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs of a component, as the manifest states them."""
        row = self.manifest["components"][component]
        inputs, outputs = (
            tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in row[key])
            for key in ("inputs", "outputs")
        )
        return inputs, outputs


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Refuse what is not a manifest of this schema."""
    hint = "export again, or install the ldmrt that made it"
    if manifest.get("schema") != SCHEMA:
        found = manifest.get("schema")
        raise LdmrtError("bundle", f"{MANIFEST} has another schema", expected=SCHEMA, found=found, hint=hint)
    for key in ("files", "components", "made_by"):
        if not isinstance(manifest.get(key), dict):
            raise LdmrtError("bundle", f"{MANIFEST} has no {key}", expected="a JSON object", hint=hint)
    for name, entry in manifest["files"].items():
        if not isinstance(entry, dict) or entry.keys() != {"size", "sha256"}:
            raise LdmrtError("bundle", f"{MANIFEST} is damaged at {name}", expected="size and sha256", hint=hint)
    for name in REQUIRED:
        if f"{name}/model.onnx" not in manifest["files"] or not isinstance(manifest["components"].get(name), dict):
            raise LdmrtError("bundle", f"{MANIFEST} does not name {name}", hint=hint)


def check_files(path: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare files with their recorded size and SHA-256; the first that differs is an `LdmrtError`."""
    for name, entry in files.items():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name:
            raise LdmrtError("bundle", f"{MANIFEST} names {name!r}", expected="a path inside the bundle")
        file = path / pure
        hint = "export again, or copy the bundle again"
        if not file.is_file():
            raise LdmrtError("bundle", "missing file", expected=file, hint=hint)
        if file.stat().st_size != entry["size"]:
            raise LdmrtError(
                "bundle",
                f"{name} was cut off or changed",
                expected=f"{entry['size']} bytes",
                found=file.stat().st_size,
                hint=hint,
            )
        if (found := sha256(file)) != entry["sha256"]:
            raise LdmrtError(
                "bundle", f"{name} was changed", expected=f"sha256 {entry['sha256']}", found=found, hint=hint
            )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LdmrtError("bundle", "missing file", expected=path, hint="export again") from None
    except (OSError, ValueError) as error:
        raise LdmrtError("bundle", f"cannot read {path}", expected="JSON", found=error, hint="export again") from None
    if not isinstance(value, dict):
        raise LdmrtError("bundle", f"cannot read {path}", expected="a JSON object", found=type(value).__name__)
    return value
