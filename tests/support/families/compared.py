"""Compare a transformer's pipelines and networks with diffusers' own, both from one checkpoint."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ldmrt.export.components.table import Component, components, example
from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.runtime import Pipeline, Request
from ldmrt.runtime.tensors import Array, Arrays, Engine

if TYPE_CHECKING:
    import torch

    # diffusers' pipeline and the inputs of a component -> what its network gives for the first output, or by name
    Called = Callable[[Any, dict[str, torch.Tensor]], torch.Tensor | dict[str, torch.Tensor]]

# Relative to the largest latent: two programs' float32 through a handful of rows, with guidance.
TOLERANCE = 2e-4
TENTH = 2e-5  # of a network's largest value: float32's sums alone, as in the certificate of a component


class Saved(dict[str, Path]):
    """Maps names to the folders of checkpoints, each of which is saved when it is first asked for."""

    def __init__(self, save: Callable[[str, Path], Path], root: Path, **there: Path) -> None:
        super().__init__(there)
        self.save, self.root = save, root

    def __missing__(self, name: str) -> Path:
        self[name] = self.save(name, self.root / name)
        return self[name]


@cache
def theirs(folder: Path, kind: str) -> Any:
    """Return diffusers' own pipeline, which has to be told of a missing T5."""
    import diffusers

    lacking = kind.startswith("StableDiffusion3") and not (folder / "text_encoder_3").is_dir()
    absent = {"text_encoder_3": None, "tokenizer_3": None} if lacking else {}
    pipeline = getattr(diffusers, kind).from_pretrained(folder, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@cache
def ours_of(folder: Path) -> Pipeline:
    """Return our pipeline of PyTorch's networks."""
    return torch_pipeline(load(folder))


def close(ours: NDArray[Any], expected: NDArray[Any]) -> None:
    assert expected.std() > 0.1
    assert np.abs(ours - expected).max() <= TOLERANCE * np.abs(expected).max()


def crossed(sizes: Sequence[tuple[int, int]]) -> list[Any]:
    """Return every size with each of as many settings, by number; those off the diagonal run among the slow tests."""
    import pytest

    return [
        pytest.param(*size, setting, marks=[] if place == setting else [pytest.mark.slow(minutes=0.03)])
        for place, size in enumerate(sizes)
        for setting in range(len(sizes))
    ]


def compare_rows(
    ours: Pipeline,
    reference: Any,
    request: Mapping[str, Any],
    given: Mapping[str, Any],
    latents_of: "Callable[[torch.Tensor], NDArray[Any]]" = lambda latents: latents.numpy(),
) -> None:
    """Compare the latents after each of our rows with those after each step of diffusers' own pipeline.

    Args:
        ours: Our pipeline.
        reference: diffusers' own, which draws the same noise.
        request: What ours is asked for.
        given: What diffusers' is.
        latents_of: Returns latents in our layout.
    """
    seen: list[NDArray[Any]] = []

    def look(_pipeline: Any, _step: int, _time: Any, tensors: dict[str, "torch.Tensor"]) -> dict[str, Any]:
        seen.append(latents_of(tensors["latents"]).copy())
        return {}

    # Lists of its own: Z-Image's pipeline writes prompts into them as the chat has them.
    own = {name: [*value] if isinstance(value, list) else value for name, value in given.items()}
    reference(**own, output_type="latent", callback_on_step_end=look)
    rows = [state.x.copy() for state in ours.steps(Request(**request))]
    for found, expected in zip(rows, seen, strict=True):
        close(found, expected)


def decibels(ours: NDArray[Any], found: NDArray[Any]) -> float:
    """Return the PSNR of images in [0, 1]."""
    return float(-10 * np.log10(np.mean((ours - found) ** 2) + 1e-12))


def _whole(part: Component, given: Arrays, output: Array) -> Array:
    return output


def compare_components(
    pipeline: Any,
    folder: Path,
    called: "Mapping[str, Called]",
    engines: Callable[[str], Engine],
    sizes: Iterable[tuple[int, int, int]],
    seen: Callable[[Component, Arrays, Array], Array] = _whole,
) -> None:
    """Compare every component of a checkpoint with the network in diffusers' pipeline.

    Args:
        pipeline: diffusers' own, of `folder`.
        folder: The checkpoint.
        called: How each component's network is called.
        engines: Returns what is compared, by the component's name.
        sizes: Batches, heights and widths in pixels.
        seen: Returns the part of a component's output that counts, of these inputs.
    """
    import torch

    parts = components(load(folder))
    assert parts.keys() == called.keys()
    for component, part in parts.items():
        engine = engines(component)
        for batch, height, width in sizes:
            given = example(part, {"batch": batch, "height": height, "width": width, "timesteps": batch})
            with torch.no_grad():
                wanted = called[component](pipeline, {key: torch.from_numpy(one) for key, one in given.items()})
            outputs = engine(**given)
            for name, theirs_ in (wanted if isinstance(wanted, dict) else {next(iter(outputs)): wanted}).items():
                ours, other = (seen(part, given, one) for one in (outputs[name], theirs_.numpy()))
                assert np.abs(ours - other).max() <= TENTH * np.abs(other).max(), f"{component}: {name}"
