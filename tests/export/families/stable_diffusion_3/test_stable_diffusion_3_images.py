"""Stable Diffusion 3 and 3.5 draw from images what diffusers' pipelines draw: image to image and inpainting."""

from typing import Any

import pytest

from ldmrt.runtime.samplers.noise.counter import FIRST, IMAGE

from ....support.families.compared import Saved, compare_rows, crossed, ours_of, theirs
from ...test_tasks import drawing, mask, picture

PROMPTS, SEEDS = ["a red apple, noto style", "two pears"], [3, 4]
# The last size has an odd number of patches along both sides.
SIZES = [(16, 24), (16, 16), (20, 36)]
# A dynamic shift is that of the image's size.
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("sd3", {"strength": 0.6, "guidance_scale": 4.0}),
    ("sd3", {"strength": 1.0, "guidance_scale": 1.0}),
    ("sd35-dynamic", {"strength": 0.8, "guidance_scale": 7.0, "negative_prompt": ["blurred", "oranges"]}),
]
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:request. .*is far from the model's own size"),
]


@pytest.mark.parametrize(("height", "width", "setting"), crossed(SIZES))
@pytest.mark.parametrize("inpaints", [False, True], ids=["image to image", "inpainting"])
def test_draws_what_diffusers_draws(
    inpaints: bool, height: int, width: int, setting: int, sd3: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, settings = SETTINGS[setting]
    asked = {"prompt": PROMPTS, "num_inference_steps": 6, **settings}
    images = {"image": picture().resize((width, height))}
    images |= {"mask_image": mask().resize((width, height))} if inpaints else {}
    given = {part: [image] * 2 for part, image in images.items()}
    reference = theirs(sd3[name], f"StableDiffusion3{'Inpaint' if inpaints else 'Img2Img'}Pipeline")
    drawing(reference, SEEDS, [IMAGE, FIRST, *([IMAGE] if inpaints else [])], monkeypatch)
    theirs_given = {**asked, **given, "height": height, "width": width}
    compare_rows(ours_of(sd3[name]), reference, {**asked, "seed": SEEDS, **images}, theirs_given)
