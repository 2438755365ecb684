"""The bundle: a directory that diffusers and optimum recognise, with one manifest of its contents.

A directory exported by optimum opens too; it has no manifest, so nothing can be checked.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from ldmrt.runtime.errors import BundleError
from ldmrt.runtime.files.file_cache import HashCache
from ldmrt.runtime.files.reading import JsonObject, read_bytes, read_json
from ldmrt.runtime.files.recognise import expect_bundle
from ldmrt.runtime.files.swap import recover
from ldmrt.runtime.tensors import TensorSpec

from .certificate import Certificate, Islands, backend_row
from .contents import Contents, bundle_errors, is_name
from .coverage import NETWORKS_ALONE, changes, is_partial
from .graphs import DENOISERS, NOT_RUN, ORDER, cuda_file, denoiser_of
from .manifest import MANIFEST, UPSCALE_MODEL, check_files, check_manifest, check_named
from .recording import Recording
from .stage_of_configs import FLUX, stage_of_configs
from .stages import CONTEXT, Stage
from .stages_json import check_inputs, stages_from_json


@dataclass(frozen=True)
class Bundle:
    """An opened bundle."""

    path: Path
    manifest: JsonObject = field(repr=False)  # empty where the directory has none
    scheduler: JsonObject = field(repr=False)  # scheduler_config.json
    stages: tuple[Stage, ...]

    @classmethod
    def open(cls, path: Path, *, check: bool = True, stamped: bool = False) -> "Bundle":
        """Read the manifest and the configs, and check that all parts of a model are there.

        Args:
            path: The directory.
            check: Compare every file with its size and SHA-256 in the manifest.
            stamped: Do not read files again that have not changed since they were last compared.

        Raises:
            BundleError: The directory is missing, is no bundle, or is damaged.
        """
        with bundle_errors():
            return cls._open(path, check=check, stamped=stamped)

    @classmethod
    def _open(cls, path: Path, *, check: bool, stamped: bool) -> "Bundle":
        manifest = read_manifest(path, check=check, stamped=stamped)
        if UPSCALE_MODEL in manifest:
            hint = f"ldmrt upscale {path} IMAGE, or ldmrt generate BUNDLE PROMPT --hires 2 --hires-upscaler {path}"
            raise BundleError("bundle", f"{path} is an upscale model, which draws nothing by itself", hint=hint)
        contents = Contents(path, manifest["files"] if manifest else None)
        bundle = cls(path, manifest, contents.json("scheduler/scheduler_config.json"), _stages(contents, manifest))
        if manifest:
            check_named(manifest, bundle.stage.components)
        for name in bundle.stage.components:
            contents.file(f"{name}/model.onnx")
        if manifest:
            check_inputs(bundle.stage, bundle.specs(bundle.stage.network)[0])
        encoders = [name for name in bundle.components if name.startswith("text_encoder")]
        if not encoders and bundle.stage.prompt:
            expected = path / "text_encoder" / "model.onnx"
            raise BundleError("bundle", "missing file", expected=expected, hint="export again")
        for folder in (name.replace("text_encoder", "tokenizer") for name in encoders):
            if not contents.files_in(folder):
                raise BundleError("bundle", "missing tokenizer", expected=path / folder, hint="export again")
        for name in bundle.graphs:
            for file in bundle.models(name):
                contents.graph(name, file.relative_to(path).as_posix())
        return bundle

    def check_unchanged(self) -> None:
        """Compare the manifest on disk with the one that was read.

        Raises:
            BundleError: Another process has changed the bundle since it was opened.
        """
        with bundle_errors():
            current = read_json("bundle", self.path / MANIFEST) if os.path.lexists(self.path / MANIFEST) else {}
        if current != self.manifest:
            problem = f"{self.path} was changed by something else meanwhile"
            raise BundleError("bundle", problem, hint="run the same command again")

    @property
    def stage(self) -> Stage:
        """Return the stage that draws."""
        return self.stages[0]

    @property
    def then(self) -> tuple[str, ...]:
        """Name the later stages of a cascade: each is a bundle in a folder of this one."""
        return tuple(self.manifest.get("then", ()))

    @property
    def schedulers(self) -> dict[str, JsonObject]:
        """Read the configs of the schedulers that add noise to an image, by their folders."""
        return {folder: self.contents.json(f"{folder}/scheduler_config.json") for folder in self.stage.schedulers}

    @property
    def contents(self) -> Contents:
        """Return the files that may be read."""
        return Contents(self.path, self.manifest.get("files"))

    def precision(self, graph: str) -> str:
        """Return the precision that a graph computes in; fp32 without a manifest."""
        return str(self.manifest.get("components", {}).get(self.home(graph), {}).get("precision", "fp32"))

    @property
    def certificate(self) -> Certificate | None:
        """Return the certificate of the bundle, if it has one."""
        stored = self.manifest.get("certificate")
        return None if stored is None else Certificate.from_json(stored)

    @property
    def reference(self) -> Recording:
        """Load the recording that the certificate compares with.

        Raises:
            BundleError: The bundle has no certificate, or a damaged recording.
        """
        return Recording.load(self.reference_file, self.stage)

    @property
    def reference_file(self) -> Path:
        """Return the file of the recording.

        Raises:
            BundleError: The bundle has no certificate, or the file is missing.
        """
        stored = self.manifest.get("certificate")
        if stored is None:
            problem, hint = "the bundle has no certificate", f"ldmrt verify {self.path} --against CHECKPOINT --store"
            raise BundleError("certificate", problem, hint=hint)
        return self.contents.file(stored["reference"], "certificate")

    def islands(self, backend: str, compute: str) -> Islands:
        """Return the modules that the certificate keeps in float32 where a backend computes in a narrower precision.

        Args:
            backend: The backend's name.
            compute: The precision that it computes in.
        """
        certificate = self.certificate
        return certificate.islands.get(backend_row(backend, compute), {}) if certificate is not None else {}

    @property
    def certificate_issues(self) -> list[str]:
        """List why the bundle's images may not be those of the checkpoint."""
        certificate = self.certificate
        if certificate is None:
            return ["it has no parity certificate"]
        certificate = certificate.exact()
        not_run = {figure.backend for figure in certificate.figures} == {NOT_RUN}
        return [
            *(["its graphs were checked, but no backend has run them"] if not_run else []),
            *changes(self.manifest, self.manifest["certificate"], certificate.about),
            *certificate.unproven(self.components),
            *certificate.failures[:1],
        ]

    def narrow_issue(self, backend: str, compute: str) -> str:
        """Say how far the images of a narrower precision are from the checkpoint's, where that is too far.

        Args:
            backend: The backend's name.
            compute: The precision that it computes in.

        Returns:
            The last failure in the certificate, which is that of the image if it is too far; empty where there is none.
        """
        certificate, row = self.certificate, backend_row(backend, compute)
        failures = certificate.past_limit([row]) if certificate is not None and compute != "fp32" else []
        return f"{row} is not the same model: {failures[-1]}" if failures else ""

    @property
    def uncovered(self) -> str:
        """Describe the files that an old certificate does not cover; empty where it covers all."""
        certificate = self.certificate
        return NETWORKS_ALONE if certificate is not None and is_partial(certificate.about) else ""

    def home(self, graph: str) -> str:
        """Return the component that a graph belongs to: they share folder and weights."""
        rows = self.manifest.get("components", {})
        return next((name for name, row in rows.items() if graph in row.get("graphs", {})), graph)

    def model(self, graph: str) -> Path:
        """Return the ONNX file of a component, or of a graph beside it."""
        home = self.home(graph)
        return self.path / home / ("model.onnx" if home == graph else f"{graph}.onnx")

    def models(self, graph: str) -> tuple[Path, ...]:
        """Return the ONNX files of a graph: its own, and its twin for ONNX Runtime's CUDA provider if it has one.

        A twin that the manifest lists is returned although its file is missing: without it, a GPU may compute wrongly.
        """
        model = self.model(graph)
        twin = cuda_file(model)
        listed = self.manifest.get("files")
        has_twin = twin.is_file() if listed is None else twin.relative_to(self.path).as_posix() in listed
        return (model, twin) if has_twin else (model,)

    def weights(self, graph: str) -> tuple[Path, ...]:
        """Return the files that hold the weights of a component, and of the graphs beside it."""
        folder = self.home(graph)
        names = self.contents.files_in(folder)
        return tuple(self.path / folder / name for name in names if not name.endswith((".json", ".onnx")))

    @property
    def network_bytes(self) -> int:
        """The bytes of all networks on disk, nearly all of which are weights."""
        files = {file for name in self.components for file in (self.model(name), *self.weights(name))}
        return sum(file.stat().st_size for file in files)

    @property
    def components(self) -> tuple[str, ...]:
        """Name the networks that the bundle holds, in the order that they run."""
        names = list(self.contents.folders_with("model.onnx"))
        known = [(place, name) for name in names for place, kind in enumerate(ORDER) if name.startswith(kind)]
        return tuple(name for _, name in sorted(known))

    @property
    def graphs(self) -> tuple[str, ...]:
        """Name all graphs: the components, and the graphs beside them that the manifest names."""
        rows = self.manifest.get("components", {})
        named = ((home, graph) for home, row in rows.items() for graph in row.get("graphs", {}))
        contents = self.contents
        return (*self.components, *(graph for home, graph in named if contents.has(f"{home}/{graph}.onnx")))

    @property
    def tokenizers(self) -> dict[str, dict[str, bytes]]:
        """Read the files of each tokenizer, by the name of its folder."""
        contents = self.contents
        folders = sorted(path.name for path in self.path.glob("tokenizer*") if path.is_dir())
        listed = {folder: contents.files_in(folder) for folder in folders if is_name(folder)}
        with bundle_errors():
            return {
                folder: {
                    name: read_bytes("tokenizer", contents.file(f"{folder}/{name}", "tokenizer")) for name in names
                }
                for folder, names in listed.items()
                if names
            }

    def specs(self, graph: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return inputs and outputs of a component, or of a graph beside it, as the manifest states them."""
        home = self.home(graph)
        row = self.manifest["components"][home]
        row = row if home == graph else row["graphs"][graph]
        inputs, outputs = (
            tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in row[key])
            for key in ("inputs", "outputs")
        )
        return inputs, outputs


def read_manifest(path: Path, *, check: bool = True, stamped: bool = False) -> JsonObject:
    """Read the manifest of a bundle, empty where it has none, and compare the files with it; see `Bundle.open`."""
    expect_bundle(path)
    if not path.is_dir():
        recover(path)
    if not path.is_dir():
        raise BundleError("bundle", f"no directory {path}", hint=f"ldmrt export CHECKPOINT {path}")
    manifest: JsonObject = {}
    if os.path.lexists(path / MANIFEST):
        manifest = read_json("bundle", path / MANIFEST)
        check_manifest(manifest)
        if check:
            check_files(path, manifest["files"], HashCache(path) if stamped else None)
    return manifest


def _stages(contents: Contents, manifest: JsonObject) -> tuple[Stage, ...]:
    """Read the stages of a manifest; of an old one, or without any, that of the configs."""
    if "stages" in manifest:
        return stages_from_json(manifest["stages"])
    there = [name for name in DENOISERS if contents.has(f"{name}/config.json")]
    network = denoiser_of(there)
    unet, vae = contents.json(f"{network}/config.json"), contents.json("vae_decoder/config.json")
    index = contents.json("model_index.json") if os.path.lexists(contents.bundle / "model_index.json") else {}
    stage = stage_of_configs(unet, vae, index)
    if stage.source(CONTEXT) is not None:  # a graph of tokens lacks those of the image
        problem, found = "unsupported pipeline in model_index.json", str(index.get("_class_name"))
        raise BundleError("bundle", problem, expected="a bundle that ldmrt exported", found=found)
    found = unet.get("in_channels", stage.input_channels)
    if found != stage.input_channels and unet.get("_class_name") != FLUX:  # whose channels are those of tokens
        problem = (
            f"in_channels of {network}/config.json does not fit a plain Stable Diffusion, and no manifest says more"
        )
        raise BundleError(
            "bundle", problem, expected=stage.input_channels, found=f"{found!r:.100}", hint="export again"
        )
    return (stage,)
