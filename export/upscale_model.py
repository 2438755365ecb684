"""Export an upscale model to a bundle of one network, and record what it computes."""

from pathlib import Path

import numpy as np
import torch

from ldmrt.model.checkpoint.checkpoint import write_json
from ldmrt.model.vision.upscale_model import UpscaleNetwork
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.graphs import UPSCALER
from ldmrt.runtime.bundle.manifest import MANIFEST, SCHEMA, UPSCALE_MODEL
from ldmrt.runtime.bundle.recording import Case, UpscaleRecording
from ldmrt.runtime.files.recognise import BUNDLE, refuse_other
from ldmrt.runtime.files.writing import naming
from ldmrt.runtime.tensors import Specs

from .bundle_writer import carry_over, files_in, made_by, replacing, row_of
from .components.component import Component
from .components.fingerprint import fingerprint
from .components.specs import dtype_of, image
from .graph.to_onnx import to_onnx
from .parity.origin import other_graph

SHAPES = (
    (2, 9, 13),
    (1, 1, 24),
    (3, 17, 2),
)  # of the recorded batches: images, and multiples of what the network takes


def component_of(model: UpscaleNetwork) -> Component:
    """Describe the network of an upscale model as a component."""
    dtype = dtype_of(model.network)
    inputs: Specs = (image("image", 3, dtype, model.scale),)
    outputs: Specs = (image("enlarged", 3, dtype),)
    return Component(UPSCALER, model.network, inputs, outputs, model.config, patch=model.multiple)


def export_upscale_model(model: UpscaleNetwork, path: Path) -> None:
    """Export an upscale model to a bundle, which changes only at the end.

    Raises:
        LdmrtError: The folder holds something else.
    """
    path, component = path.resolve(), component_of(model)
    refuse_other("export", path, BUNDLE)
    with replacing(path) as (old, work):
        with naming(path / UPSCALER):
            to_onnx(component, work / UPSCALER)
        write_json(work / UPSCALER / "config.json", component.config)
        manifest = {
            "schema": SCHEMA,
            "made_by": made_by(),
            "stages": [],
            UPSCALE_MODEL: model.config,
            "components": {UPSCALER: row_of(component, {})},
            "files": files_in(work, {}),
        }
        write_json(work / MANIFEST, manifest)
        carry_over(path, work, {MANIFEST, *old.get("files", {})})


def record_upscale_model(model: UpscaleNetwork) -> UpscaleRecording:
    """Record what a model in float32 computes of noise and of smooth colours, in images of several sizes."""
    rng, cases = np.random.default_rng(0), list[Case]()
    for batch, high, wide in SHAPES:
        least = -(-model.minimum // model.multiple)
        height, width = (max(side, least) * model.multiple for side in (high, wide))
        noise = rng.random((3, height, width))
        smooth = np.linspace(0, 1, width) * np.linspace(1, 0, height)[:, None] * np.ones((3, 1, 1))
        images = np.stack([noise, smooth, 1 - noise][:batch]).astype(np.float32)
        with torch.no_grad():
            (enlarged,) = model.network(torch.from_numpy(images))
        name = f"batch {batch} at {width}x{height}"
        cases.append(Case(UPSCALER, name, {"image": images}, {"enlarged": enlarged.numpy()}))
    return UpscaleRecording(tuple(cases))


def other_origin_of(bundle: Bundle, model: UpscaleNetwork) -> list[str]:
    """List the parts of a bundle that are not of this model, in the bundle's precision."""
    component, row = component_of(model), bundle.manifest["components"][UPSCALER]
    differ = [f"{key} of {UPSCALER}" for key, value in fingerprint(component).items() if row.get(key) != value]
    if bundle.manifest[UPSCALE_MODEL] != model.config:
        differ.append(f"{UPSCALE_MODEL} of {MANIFEST}")
    return [*differ, *other_graph(component, bundle.model(UPSCALER))]
