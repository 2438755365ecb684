"""FLUX.1 draws from images what diffusers' pipelines draw: image to image, inpainting, Fill, Canny and Depth."""

from functools import partial
from typing import Any

import pytest

from ldmrt.runtime.samplers.noise.counter import FIRST, IMAGE, MASKED

from ....support.families.compared import Saved, compare_rows, crossed, ours_of, theirs
from ....support.families.flux import ASKED, SEEDS, latents_of
from ...test_tasks import drawing, mask, picture

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:request. .*is far from the model's own size"),
]
NEGATIVE = {"negative_prompt": ["two oranges", "a lemon"]}
# The last size has an odd number of tokens along both sides.
SIZES = [(64, 96), (64, 64), (48, 80)]
CASES: dict[str, tuple[str, str, list[int], list[dict[str, Any]]]] = {
    # The shift is that of the image's size.
    "image to image": (
        "dev",
        "FluxImg2ImgPipeline",
        [IMAGE, FIRST],
        [
            {"strength": 0.3, "true_cfg_scale": 1.0, **NEGATIVE},
            {"strength": 0.8, "true_cfg_scale": 3.0, **NEGATIVE},
            {"strength": 0.5, "guidance_scale": 1.0},
        ],
    ),
    # The network is told nothing of the mask: what is kept is blended in after every row.
    "inpainting": (
        "dev",
        "FluxInpaintPipeline",
        [IMAGE, FIRST, IMAGE],
        [
            {"strength": 0.6, "true_cfg_scale": 3.0, **NEGATIVE},
            {"strength": 1.0, "true_cfg_scale": 1.0, **NEGATIVE},
            {"strength": 0.8, "guidance_scale": 1.0},
        ],
    ),
    # The network is given the masked image's latents, and every pixel of the mask.
    "fill": (
        "fill",
        "FluxFillPipeline",
        [IMAGE, FIRST, MASKED],
        [
            {"strength": 0.6, "guidance_scale": 30.0},
            {"strength": 1.0, "guidance_scale": 30.0},
            {"strength": 1.0, "guidance_scale": 1.0},
        ],
    ),
    # Canny and Depth are given the latents of their image, of edges or of a depth, beside their own.
    "control": (
        "canny",
        "FluxControlPipeline",
        [IMAGE, FIRST],
        [{}, {"guidance_scale": 30.0}, {"guidance_scale": 1.0, "prompt_2": ["pears", "a penguin"]}],
    ),
}


@pytest.mark.parametrize(("height", "width", "setting"), crossed(SIZES))
@pytest.mark.parametrize("case", CASES)
def test_draws_what_diffusers_draws(
    case: str, height: int, width: int, setting: int, flux: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, kind, streams, settings = CASES[case]
    asked = {**ASKED, "num_inference_steps": 6, **settings[setting]}
    images = {"image": picture().resize((width, height))}
    images |= {"mask_image": mask().resize((width, height))} if case in ("inpainting", "fill") else {}
    given = {"control_image" if case == "control" else part: [image] * 2 for part, image in images.items()}
    reference = theirs(flux[name], kind)
    drawing(reference, SEEDS, streams, monkeypatch)
    unpacked = partial(latents_of, height=height, width=width)
    theirs_given = {**asked, **given, "height": height, "width": width}
    compare_rows(ours_of(flux[name]), reference, {**asked, "seed": SEEDS, **images}, theirs_given, unpacked)
