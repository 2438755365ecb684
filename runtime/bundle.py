"""The bundle: a directory that diffusers and optimum recognise, with one manifest that says what it must contain.

A directory exported by optimum opens too; it has no manifest, so nothing can be checked.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from .certificate import Certificate
from .errors import LdmrtError
from .files import sha256
from .reference import Reference
from .specs import TensorSpec
from .stamps import Stamped

MANIFEST = "ldmrt.json"
STEP = "step"  # the folded step, a graph beside the U-Net's own
CUT = DEEP, SHALLOW = "unet_deep", "unet_shallow"  # the U-Net cut in two for the deep cache
# What the names of parts of a decoder, or an encoder, have after its own: the whole goes in front of tiles, or after.
FRONT, TILE, BACK = "_front", "_tile", "_back"
FEATURE = "deep"  # what the one gives and the other takes
SCHEMA = 1
REQUIRED = ("unet", "vae_decoder")
UNRUN = "pytorch"  # measured in the place of graphs that no backend could run when the bundle was made
ORDER = ("text_encoder", "unet", "vae", "controlnet", "adapter")  # of the components, by how their names begin


@dataclass(frozen=True)
class Shape:
    """What the runtime knows of a model beside its networks."""

    channels: int  # of the latents
    factor: int  # pixels a latent, along one side
    scaling_factor: float  # the U-Net sees the autoencoder's latents times this
    size: int  # the side, in pixels, that the model was trained on
    zeros: bool = False  # no negative prompt means no words at all, not the words "" (SDXL)
    scored: bool = False  # time_ids end with an aesthetic score (SDXL's refiner)
    sides: tuple[int, int] | None = None  # height and width in pixels, where they are not both `size`

    @classmethod
    def read(cls, unet: Mapping[str, Any], vae: Mapping[str, Any], index: Mapping[str, Any]) -> "Shape":
        """From the configs of diffusers and what model_index.json says beside its parts."""
        widths = vae.get("block_out_channels")
        if not isinstance(widths, list) or not widths:
            raise LdmrtError("bundle", "vae_decoder/config.json has no block_out_channels", found=widths)
        factor = 2 ** (len(widths) - 1)
        side = unet.get("sample_size") or 64  # one, or height and width
        pair = (int(side[0]) * factor, int(side[-1]) * factor) if isinstance(side, (list, tuple)) else None
        return cls(
            channels=int(vae.get("latent_channels", 4)),
            factor=factor,
            scaling_factor=float(vae.get("scaling_factor") or 0.18215),
            size=max(pair) if pair else int(side) * factor,
            sides=pair,
            zeros=bool(index.get("force_zeros_for_empty_prompt", False)),
            scored=bool(index.get("requires_aesthetics_score", False)),
        )

    @property
    def own(self) -> tuple[int, int]:
        """Height and width, in pixels, of the images that the model was trained on."""
        return self.sides or (self.size, self.size)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. `manifest` is empty where the directory has none."""

    path: Path
    manifest: Mapping[str, Any] = field(repr=False)
    scheduler: Mapping[str, Any] = field(repr=False)
    shape: Shape

    @classmethod
    def open(cls, path: Path, *, check: bool = True, stamped: bool = False) -> "Bundle":
        """Read the manifest and the configs. `check` compares every file with its size and SHA-256; `stamped` files
        that have not changed since they were last compared are not read again.
        """
        if not path.is_dir():
            raise LdmrtError("bundle", f"no directory {path}", hint=f"ldmrt export CHECKPOINT {path}")
        manifest: dict[str, Any] = {}
        if (path / MANIFEST).is_file():
            manifest = _json(path / MANIFEST)
            check_manifest(manifest)
            if check:
                check_files(path, manifest["files"], Stamped(path) if stamped else None)
        for name in REQUIRED:
            if not (path / name / "model.onnx").is_file():
                raise LdmrtError("bundle", "missing file", expected=path / name / "model.onnx", hint="export again")
        if not any(path.glob("text_encoder*/model.onnx")):
            raise LdmrtError(
                "bundle", "missing file", expected=path / "text_encoder" / "model.onnx", hint="export again"
            )
        return cls(path, manifest, _json(path / "scheduler" / "scheduler_config.json"), _shape(path))

    def precision(self, graph: str) -> str:
        """What a graph computes in; fp32 where no manifest says it."""
        return str(self.manifest.get("components", {}).get(self.home(graph), {}).get("precision", "fp32"))

    @property
    def certificate(self) -> Certificate | None:
        """What was measured when the bundle was made, if it was."""
        stored = self.manifest.get("certificate")
        return None if stored is None else Certificate.from_json(stored)

    @property
    def reference(self) -> Reference:
        """What the certificate's checkpoint computed."""
        stored = self.manifest.get("certificate")
        if stored is None:
            problem, hint = "the bundle has no certificate", f"ldmrt verify {self.path} --against CHECKPOINT --store"
            raise LdmrtError("certificate", problem, hint=hint)
        return Reference.load(self.path / str(stored.get("reference")))

    @property
    def doubts(self) -> list[str]:
        """Why its pictures may not be those of the checkpoint."""
        made = self.certificate
        if made is None:
            return ["it has no parity certificate"]
        files = self.manifest["files"]
        changed = [name for name, digest in made.about["bundle"].items() if files.get(name, {}).get("sha256") != digest]
        unrun = bool(made.figures) and {one.backend for one in made.figures} == {UNRUN}
        said = ["its graphs were checked, but no backend has run them"] if unrun else []
        return [*said, *(f"{name} is not the file that was certified" for name in changed), *made.failures[:1]]

    def home(self, graph: str) -> str:
        """The component whose folder and weights are those of a graph."""
        rows = self.manifest.get("components", {})
        return next((name for name, row in rows.items() if graph in row.get("graphs", {})), graph)

    def model(self, graph: str) -> Path:
        """The ONNX file of a component, or of a graph beside it."""
        home = self.home(graph)
        return self.path / home / ("model.onnx" if home == graph else f"{graph}.onnx")

    def weights(self, graph: str) -> tuple[Path, ...]:
        """The files that hold the weights of a component, and of the graphs beside it."""
        files = (self.path / self.home(graph)).iterdir()
        return tuple(sorted(one for one in files if one.is_file() and one.suffix not in (".json", ".onnx")))

    @property
    def components(self) -> tuple[str, ...]:
        """What is here to run."""
        names = [file.parent.name for file in self.path.glob("*/model.onnx")]
        known = [(place, name) for name in names for place, kind in enumerate(ORDER) if name.startswith(kind)]
        return tuple(name for _, name in sorted(known))

    @property
    def graphs(self) -> tuple[str, ...]:
        """What an engine can be made of: the components, and the graphs beside them that the manifest names."""
        rows = self.manifest.get("components", {}).values()
        beside = (name for row in rows for name in row.get("graphs", {}) if self.model(name).is_file())
        return (*self.components, *beside)

    @property
    def tokenizers(self) -> tuple[Path, ...]:
        """Their folders."""
        return tuple(sorted(path for path in self.path.glob("tokenizer*") if path.is_dir()))

    def specs(self, graph: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs of a component, or of a graph beside it, as the manifest states them."""
        home = self.home(graph)
        row = self.manifest["components"][home]
        row = row if home == graph else row["graphs"][graph]
        inputs, outputs = (
            tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in row[key])
            for key in ("inputs", "outputs")
        )
        return inputs, outputs


def _shape(path: Path) -> Shape:
    unet, vae = _json(path / "unet" / "config.json"), _json(path / "vae_decoder" / "config.json")
    index = _json(path / "model_index.json") if (path / "model_index.json").is_file() else {}
    return Shape.read(unet, vae, index)


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


def check_files(path: Path, files: Mapping[str, Mapping[str, Any]], stamps: Stamped | None = None) -> None:
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
        found = sha256(file) if stamps is None else stamps.sha256(name, file)
        if found != entry["sha256"]:
            raise LdmrtError(
                "bundle", f"{name} was changed", expected=f"sha256 {entry['sha256']}", found=found, hint=hint
            )
    if stamps is not None:
        stamps.keep()


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
