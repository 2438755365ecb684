"""ldmrt's side, first part: small random checkpoints, their bundles, and what ldmrt draws from these.

python -m tests.interop.make FOLDER [FAMILY ...]
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from ldmrt.export.bundle_writer import export_bundle
from ldmrt.model import load
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.samplers.noise.counter import FIRST, IMAGE, MASKED, noise

from ..support.families import FAMILIES
from ..support.families.flux import FLUX, save_flux
from ..support.families.stable_diffusion_3 import SD3, save_sd3
from ..support.pipelines import save_pipeline
from . import cases
from .cases import CASES, SHIPPED, Place, chosen
from .ours import draw


def checkpoint(family: str, folder: Path) -> None:
    """A family's pipeline as the hub has it, of transformers 4: with a prefix of CLIP's weights, and other names."""
    if family == SHIPPED:
        shutil.copytree(Path("model/pretrained") / family, folder)
        return
    save = next((save for names, save in ((SD3, save_sd3), (FLUX, save_flux)) if family in names), save_pipeline)
    save(family, folder)
    for path in folder.glob("text_encoder*/model.safetensors"):
        state = load_file(path)
        if "shared.weight" not in state and not any(key.startswith("text_model.") for key in state):  # T5 has none
            state = {key if key.startswith("text_proj") else f"text_model.{key}": value for key, value in state.items()}
            save_file(state, path, metadata={"format": "pt"})
    for path in folder.glob("tokenizer*/tokenizer_config.json"):  # lists that transformers 4 takes for mappings
        config = json.loads(path.read_text())
        if isinstance(config.get("extra_special_tokens"), list):
            config["additional_special_tokens"] = config.pop("extra_special_tokens")
            path.write_text(json.dumps(config))
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"T5Tokenizer"', '"T5TokenizerFast"'))  # as the hub's say


def noises(place: Place) -> None:
    """What diffusers' pipeline draws, of ldmrt's streams: what it needs to begin, then a row each."""
    case, space = place.case, Bundle.open(place.directory("ldmrt")).stage.space
    begin = {"text": [FIRST], "picture": [IMAGE, FIRST], "mask": [IMAGE, FIRST, MASKED]}[case.task]
    if case.task == "mask" and case.strength == 1.0:  # nothing of the picture is left at the start
        begin.remove(IMAGE)
    rows = range(1, 2 * cases.STEPS + 1)
    shape = (space.channels, cases.HEIGHT // space.factor, cases.WIDTH // space.factor)
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
