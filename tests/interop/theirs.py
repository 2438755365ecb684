"""optimum's side: export the checkpoints, draw from both directories. Runs where ldmrt is not installed.

python -m tests.interop.theirs FOLDER [FAMILY ...]
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import optimum.onnxruntime
import torch
from optimum.exporters.onnx import main_export

from . import cases
from .cases import Drawn, Place, chosen


def export(place: Place) -> None:
    """What `optimum-cli export onnx` writes."""
    main_export(
        str(place.checkpoint), output=place.directory("optimum"), library_name="diffusers", task="text-to-image",
        do_validation=False,
    )  # fmt: skip


def given_noises(values: list[torch.Tensor]) -> None:
    """Let everything in diffusers that draws noise take the next of these."""
    queue = iter(values)

    def drawn(shape: Any, *_: Any, **__: Any) -> torch.Tensor:
        value = next(queue)
        assert value.shape == tuple(shape), (value.shape, shape)
        return value

    for name, module in list(sys.modules.items()):
        if name.startswith("diffusers.") and "randn_tensor" in vars(module):
            module.randn_tensor = drawn  # type: ignore[attr-defined]


def draw(pipeline: Any, place: Place) -> Any:
    """The pictures of a pipeline, ORT's or diffusers' own, from 0 to 1."""
    case, values = place.case, list(torch.from_numpy(np.load(place.noises)))
    asked: dict[str, Any] = {"height": cases.HEIGHT, "width": cases.WIDTH}
    if case.task == "text":
        latents = values.pop(0)
        asked["latents"] = pipeline._pack_latents(latents, *latents.shape) if case.packs else latents
    if case.task == "picture":  # whose size is the picture's own
        asked = {}
    if case.task != "text":
        asked |= {"image": [cases.picture()] * len(cases.PROMPTS), "strength": case.strength}
    if case.task == "mask":
        asked["mask_image"] = [cases.mask()] * len(cases.PROMPTS)
    if case.negative:
        asked["negative_prompt"] = [cases.NEGATIVE] * len(cases.PROMPTS)
    given_noises(values)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        cases.PROMPTS, num_inference_steps=cases.STEPS, guidance_scale=cases.GUIDANCE, output_type="np", **asked
    ).images


def attempt(drawn: Drawn, kind: Any, folder: Path, place: Place, **how: Any) -> None:
    """Open `folder` as a pipeline of `kind` and draw; an error is kept as what was drawn."""
    try:
        images = draw(kind.from_pretrained(folder, **how), place)
    except Exception as error:
        drawn.fail(error)
    else:
        drawn.save(np.rint(images * 255).astype(np.uint8))


def run(place: Place) -> None:
    """Everything of one case: what diffusers draws too, which tells a bad checkpoint from what optimum cannot do."""
    kind = getattr(optimum.onnxruntime, place.case.pipeline)
    try:
        if not place.directory("optimum").exists():
            export(place)
    except Exception as error:
        place.drawn("optimum", "exporter").fail(error)
    for maker in ("optimum",) if place.case.packs else ("ldmrt", "optimum"):
        attempt(place.drawn(maker, "optimum"), kind, place.directory(maker), place)
        # optimum reserves the memory of outputs beforehand, from their names in the graph: its own way on CUDA
        attempt(place.drawn(maker, "optimum-bound"), kind, place.directory(maker), place, use_io_binding=True)
    own = getattr(diffusers, place.case.pipeline.removeprefix("ORT"))
    attempt(place.drawn("diffusers", "diffusers"), own, place.checkpoint, place)


def main(root: Path, families: Sequence[str]) -> None:
    """Every case."""
    for case in chosen(families):
        run(Place(root, case))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
