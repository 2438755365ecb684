"""ldmrt's side, first part: small random checkpoints, their bundles, and what ldmrt draws from these.

python -m tests.interop.make FOLDER [FAMILY ...]
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from ldmrt.export.bundle_writer import export_bundle
from ldmrt.model import load
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.samplers.noise import FIRST, IMAGE, MASKED, noise

from ..support.families import FAMILIES
from ..support.pipelines import save_pipeline
from . import cases
from .cases import CASES, SHIPPED, Place, chosen
from .ours import draw


def checkpoint(family: str, folder: Path) -> None:
    """A family's pipeline, its text encoders under the names that the hub has: transformers 5 dropped a prefix."""
    if family == SHIPPED:
        shutil.copytree(Path("model/pretrained") / family, folder)
        return
    save_pipeline(family, folder)
    for path in folder.glob("text_encoder*/model.safetensors"):
        state = load_file(path)
        if not any(key.startswith("text_model.") for key in state):
            state = {key if key.startswith("text_proj") else f"text_model.{key}": value for key, value in state.items()}
            save_file(state, path, metadata={"format": "pt"})


def noises(place: Place) -> None:
    """What diffusers' pipeline draws, of ldmrt's streams: what it needs to begin, then a row each."""
    case, model = place.case, Bundle.open(place.directory("ldmrt")).shape
    begin = {"text": [FIRST], "picture": [IMAGE, FIRST], "mask": [IMAGE, FIRST, MASKED]}[case.task]
    if case.task == "mask" and case.strength == 1.0:  # nothing of the picture is left at the start
        begin.remove(IMAGE)
    rows = range(1, 2 * cases.STEPS + 1)
    shape = (model.channels, cases.HEIGHT // model.factor, cases.WIDTH // model.factor)
    np.save(place.noises, np.stack([noise(cases.SEEDS, stream, shape) for stream in (*begin, *rows)]))


def make(place: Place) -> None:
    """Everything of one case; an error is kept as what was drawn."""
    try:
        if not place.checkpoint.exists():
            checkpoint(place.case.family, place.checkpoint)
            for _ in export_bundle(load(place.checkpoint), place.directory("ldmrt")):
                pass
        noises(place)
    except Exception as error:
        place.drawn("ldmrt", "ldmrt").fail(error)
        return
    draw(place, "ldmrt")
    draw(place, "ldmrt", prompts=cases.OTHER_PROMPTS, by="ldmrt-other-words")


def main(root: Path, families: Sequence[str]) -> None:
    """Every case; a family of tests/support/families.py without one is an error."""
    if missing := FAMILIES.keys() - {case.family for case in CASES}:
        raise SystemExit(f"no case for {', '.join(sorted(missing))}")
    for case in chosen(families):
        make(Place(root, case))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
