"""What PyTorch computes, recorded: on real prompts and latents, and at the corners of what the graphs allow."""

import warnings
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ldmrt.export.components.component import Component
from ldmrt.export.components.table import components, example
from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model.checkpoint.checkpoint import Checkpoint
from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.bundle.graphs import DECODER_PREVIEW, SAFETY_CHECKER
from ldmrt.runtime.bundle.recording import CONTROL, Case, Recording, Trajectory, request_fields
from ldmrt.runtime.bundle.stages import IMAGE_PROMPT, Stage
from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.pipeline.autoencoder.safety import flagged
from ldmrt.runtime.pipeline.conditioning.prompts import tokens_of
from ldmrt.runtime.pipeline.denoising.controls import KINDS
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.pipeline.request.field_names import from_short
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.plan import Latents
from ldmrt.runtime.tensors import Array, Arrays

STEPS, GUIDANCE = 20, 5.0
TEXTS = ["", "Two PEARS! (oil on canvas), 4k...", "naïve café \u732b \U0001f43c"]  # for the tokenizers
SIDE = 256  # pixels at most, unless asked: graphs are the same at every size, and at 512 a CPU takes 10 seconds a row


class RecordingEngine:
    """Keeps inputs and outputs of an engine, at the calls that are `wanted`: number -> name."""

    def __init__(self, component: Component, wanted: Mapping[int, str]) -> None:
        """Wrap a component's PyTorch network."""
        self._engine = component.engine()
        self.inputs, self.outputs = component.inputs, component.outputs
        self.cases: list[Case] = []
        self._wanted, self._calls = wanted, 0

    def __call__(self, **arrays: Array) -> Arrays:
        """Run the network once, and keep the call."""
        out = self._engine(**arrays)
        if self._calls in self._wanted:
            kept = {name: np.array(array) for name, array in arrays.items()}
            self.cases.append(Case(self._engine.component, self._wanted[self._calls], kept, out))
        self._calls += 1
        return out

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()


def record(
    checkpoint: Checkpoint,
    prompt: str,
    *,
    seed: int = 0,
    side: int | None = None,
    parts: Mapping[str, Component] | None = None,
) -> Recording:
    """Draw an image with PyTorch and record the calls of every component, and every row of the sampler.

    Of the U-Net, the calls of the first, the middle and the last row are kept. Each component is also called with an
    odd batch and unequal sides, with random numbers.

    Args:
        checkpoint: The reference.
        prompt: The image's prompt.
        seed: The seed of its noise.
        side: The image's width and height in pixels; the model's own where it is None, and then at most 256.
        parts: The checkpoint's components, where they compute otherwise than its networks do by themselves.

    Returns:
        The recording, whose trajectory holds latents (rows + 1, B, C, h, w) and predictions (rows, B, C, h, w).

    Raises:
        LdmrtError: The side is not a multiple of the pixels that the networks divide it by.
    """
    parts, plain = parts or components(checkpoint), torch_pipeline(checkpoint)
    side = side or min(SIDE, plain.stage.size)
    if side % (unit := max(part.unit for part in parts.values())):
        raise LdmrtError("verify", "invalid side", expected=f"a multiple of {unit} pixels", found=side)
    options = asking(prompt, seed, side, STEPS, plain.stage)
    rows = plain.plan(request_of(options, {})).rows
    engines = {name: RecordingEngine(part, wanted(part, rows)) for name, part in parts.items()}
    pipeline = replace(plain, engines=LazyEngines.of(engines))
    given = needed(parts, checkpoint, side)
    trajectory = _draw(pipeline, options, given)
    texts = [prompt, *TEXTS]
    with warnings.catch_warnings():  # of texts that are too long
        warnings.simplefilter("ignore", LdmrtWarning)
        read = {
            name: tokenizer(texts, tokens_of(tokenizer, plain.stage.prompt))
            for name, tokenizer in plain.tokenizers.items()
        }
    cases = [Case(name, "prompts", {"texts": np.array(texts)}, {"input_ids": ids}) for name, ids in read.items()]
    for name, part in parts.items():
        engine = engines[name]
        if name == "vae_encoder" and not engine.cases:
            channels = int(part.inputs[0].shape[1])
            images = trajectory.images[..., :channels].transpose(0, 3, 1, 2)
            engine(sample=images.astype(np.float32) / np.float32(127.5) - 1)
        if name == SAFETY_CHECKER:
            flagged({name: engine}, trajectory.images[:1, ..., :3])
        if name == DECODER_PREVIEW:
            pipeline.preview(trajectory.x[-1][:1])
        cases += engine.cases
        cases += corners(part, side, plain.stage.space.factor)
    return Recording(tuple(cases), trajectory, plain.stage.space.scaling_factor)


def corners(part: Component, side: int, factor: int) -> list[Case]:
    """Record random calls: one image, an odd batch, and unequal sides."""
    unit = part.unit if part.unit > 1 else factor
    sizes = [(1, side, side), (3, side, side), (2, side, side + unit)]
    cases = []
    for seed, (batch, height, width) in enumerate(sizes):
        inputs = example(part, {"batch": batch, "height": height, "width": width}, seed)
        name = f"batch {batch}" if _reads(part) else f"batch {batch} at {width}x{height}"
        cases.append(Case(part.name, name, inputs, part.engine()(**inputs)))
    return cases


def _reads(part: Component) -> bool:
    return part.inputs[0].name == "input_ids"


def wanted(part: Component, rows: int) -> dict[int, str]:
    """Return which of a component's calls are kept, and the name of each case."""
    if any(spec.name == "timestep" for spec in part.inputs):
        return {row: f"row {row} of {rows}" for row in (0, rows // 2, rows - 1)}
    return {0: "prompt" if _reads(part) else "picture"}


def asking(prompt: str, seed: int, side: int, steps: int, stage: Stage) -> JsonObject:
    """Return the fields of a plain request, by their short words; of a model that draws classes, the first one.

    A model that reads no prompt is given "". A row of guidance skips the layers that it can.
    """
    prompt = prompt if stage.prompt else ""
    plain = {"prompt": prompt, "seed": seed, "width": side, "height": side, "steps": steps, "guidance": GUIDANCE}
    plain |= {"class_labels": 0} if stage.source("class") else {}
    return plain | ({"skip_guidance_layers": list(stage.skipped_layers)} if stage.skipped_layers else {})


def request_of(options: JsonObject, images: Arrays) -> Request:
    """Return the request of fields by their short words, and of its images as recordings name them."""
    return Request(**from_short(request_fields(options, images)))


def needed(parts: Mapping[str, Component], checkpoint: Checkpoint, side: int) -> Arrays:
    """Return the images that the model and its controls need: a gradient of colours, half of it masked.

    A model that enlarges is given a small one, whose enlargement has this side.
    """
    stage = checkpoint.stage
    slope = np.linspace(0, 255, side)
    image = np.stack(np.broadcast_arrays(slope, slope[:, None], 255 - slope), axis=-1).astype(np.uint8)
    mask = np.zeros((side, side), np.uint8)
    mask[:, side // 2 :] = 255
    names = [name.partition("_")[2] for name in parts if name.startswith(KINDS)]
    given: Arrays = {f"{CONTROL}{name}": image for name in names}
    given |= {"ip_adapter_image": image} if stage.source(IMAGE_PROMPT) else {}
    given |= {"image": image[:: stage.enlarges, :: stage.enlarges]} if stage.takes_image or stage.takes_mask else {}
    return given | ({"mask": mask} if stage.takes_mask else {})


def _draw(pipeline: Pipeline, options: JsonObject, given: Arrays) -> Trajectory:
    """Draw an image with PyTorch and keep every row."""
    task = pipeline.prepare(request_of(options, given))
    seen, predictions = list[Latents](), list[Latents]()

    def model(x: Latents, t: float, _: Latents | None = None) -> Latents:
        seen.append(x.copy())
        predictions.append(task.model(x, t).copy())
        return predictions[-1]

    x = task.x
    for state in replace(task, model=model).steps():
        x = state.x
    return Trajectory(options, given, task.plan.t, np.stack([*seen, x]), np.stack(predictions), pipeline.decode(x))
