"""Does the bundle compute what the checkpoint does? Component by component, then picture against picture."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ldmrt.model import Checkpoint
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.bundle import Bundle
from ldmrt.runtime.engine_ort import OrtEngine
from ldmrt.runtime.pipeline import open_pipeline

from .bundle import fingerprint
from .components import Component, components, example
from .reference import torch_pipeline

# The same float32 latents through 20 rows and the decoder, twice: 60 dB is a mean error of a quarter of a grey level.
PICTURE_DB = 60.0
STEPS, GUIDANCE = 20, 5.0
RELATIVE, DB, FACTS = "of the largest value", "dB", "facts"


@dataclass(frozen=True)
class Difference:
    """One row of the report: `value` in `unit`, and whether it is within the tolerance."""

    what: str
    value: float
    limit: float
    unit: str
    detail: str = ""

    @property
    def within(self) -> bool:
        """Decibels have to reach the limit, differences must not pass it; what is not a number is never within."""
        return self.value >= self.limit if self.unit == DB else self.value <= self.limit


def compare(bundle: Path, checkpoint: Checkpoint, prompt: str, seed: int = 0) -> Iterator[Difference]:
    """The bundle against its checkpoint: what it says it was made of, every component on ONNX Runtime against
    PyTorch, then the final picture from the same latents.
    """
    opened = Bundle.open(bundle)
    if opened.manifest:
        others = other_origin(opened, checkpoint)
        yield Difference("origin", len(others), 0, FACTS, ", ".join(others))
    known = components(checkpoint)
    for name in opened.components:
        if name not in known:
            raise LdmrtError(name, "the checkpoint has no such component", expected=", ".join(known))
        engine = OrtEngine(name, opened.model(name))
        difference = component_difference(known[name], cases(checkpoint, known[name]), engine)
        yield Difference(name, difference, known[name].tolerance, RELATIVE)
        engine.close()
    pictures = []
    for pipeline in (open_pipeline(bundle, check=False), torch_pipeline(checkpoint)):
        result = pipeline(prompt, steps=STEPS, guidance=GUIDANCE, seed=seed)
        pictures.append(result.images)
        pipeline.close()
    yield Difference("picture", psnr(*pictures), PICTURE_DB, DB)


def other_origin(bundle: Bundle, checkpoint: Checkpoint) -> list[str]:
    """What of the bundle was not made from this checkpoint, exactly: weights, configs, scheduler, tokenizer."""
    differ = []
    for name, component in components(checkpoint).items():
        for key, value in fingerprint(component).items():
            if bundle.manifest["components"].get(name, {}).get(key) != value:
                differ.append(f"{key} of {name}")
    if dict(bundle.scheduler) != checkpoint.scheduler:
        differ.append("scheduler")
    for folder, files in checkpoint.tokenizers.items():
        for name, content in files.items():
            path = bundle.path / folder / name
            if not path.is_file() or path.read_bytes() != content:
                differ.append(f"{folder}/{name}")
    return differ


def component_difference(component: Component, sizes: list[dict[str, int]], engine: OrtEngine) -> float:
    """The largest difference over the cases, relative to the largest value of the reference's output."""
    reference, worst = component.engine(), 0.0
    for seed, size in enumerate(sizes):
        feeds = example(component, size, seed)
        expected, found = reference(**feeds), engine(**feeds)
        for name, value in expected.items():
            if found[name].shape != value.shape:
                return float("inf")
            difference = np.abs(found[name].astype(np.float64) - value).max() / max(np.abs(value).max(), 1e-30)
            worst = max(worst, float(difference)) if np.isfinite(difference) else float("inf")
    return worst


def cases(checkpoint: Checkpoint, component: Component) -> list[dict[str, int]]:
    """Sizes to compare at: one picture, an odd batch, and a shape with odd sides that is not square."""
    side = min(256, (checkpoint.unet.config.sample_size or 64) * checkpoint.vae.config.factor)
    unit = component.unit if component.unit > 1 else checkpoint.vae.config.factor
    return [
        {"batch": 1, "height": side, "width": side},
        {"batch": 3, "height": side, "width": side},
        {"batch": 2, "height": side, "width": side + unit},
    ]


def psnr(a: NDArray, b: NDArray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures in dB; infinite where they are equal."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))
