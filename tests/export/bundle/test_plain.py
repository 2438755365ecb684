"""Models that read no prompt draw what diffusers' pipelines draw, in the latents of a codebook and in pixels."""

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.runtime import LdmrtError, Pipeline, Request
from ldmrt.runtime.parity.metrics import psnr
from ldmrt.runtime.samplers.noise.counter import FIRST
from ldmrt.runtime.samplers.registry import find_scheduler

from ...support.families import PLAIN
from ...support.pipelines import randomise, save_pipeline
from ..families.test_stable_diffusion import SEEDS, STEPS, TOLERANCE, close, picture
from ..test_tasks import drawing

# Of diffusers, whose pipelines of latent diffusion are old.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)
SMALL = 12  # pixels of an image that is enlarged


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("plain")
    return {name: save_pipeline(name, root / name) for name in PLAIN}


@pytest.fixture(scope="module")
def pipelines(places: dict[str, Path]) -> dict[str, Pipeline]:
    return {name: torch_pipeline(load(place)) for name, place in places.items()}


def told(name: str, height: int = SMALL, width: int = SMALL) -> dict[str, Any]:
    """The image of a model that enlarges."""
    return {"image": picture(max(height, width)).resize((width, height))} if name == "super-resolution" else {}


def theirs(
    name: str, place: Path, scheduler: str | None, monkeypatch: pytest.MonkeyPatch, **asked: Any
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The last state, and the image in [0, 1], of diffusers' own pipeline."""
    pipeline = getattr(diffusers, PLAIN[name].pipeline).from_pretrained(place)
    if scheduler is not None:
        line, changes = find_scheduler({}, scheduler)
        pipeline.scheduler = getattr(diffusers, line.class_name).from_config(pipeline.scheduler.config, **changes)
    pipeline.set_progress_bar_config(disable=True)
    sde = name == "score-sde"  # whose scheduler steps in two ways; its last noise is not added
    method, given = ("step_pred", "prev_sample_mean") if sde else ("step", "prev_sample")
    states, step = list[torch.Tensor](), getattr(pipeline.scheduler, method)

    def recorded(*args: Any, **kwargs: Any) -> Any:
        out = step(*args, **kwargs)
        states.append(getattr(out, given))
        return out

    recorded.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]  # which the pipelines look at
    monkeypatch.setattr(pipeline.scheduler, method, recorded, raising=False)
    drawing(pipeline, SEEDS, [FIRST], monkeypatch)
    if name == "super-resolution":
        pixels = np.asarray(told(name)["image"], np.float32) / 127.5 - 1
        asked["image"] = torch.from_numpy(pixels.transpose(2, 0, 1)[None]).repeat(2, 1, 1, 1)
    else:
        asked["batch_size"] = len(SEEDS)
    images = pipeline(num_inference_steps=STEPS, output_type="np", **asked).images
    return states[-1].numpy(), images


# None is the family's own. Each of these pipelines calls its scheduler with arguments that only some know.
SAMPLERS: dict[str, tuple[str | None, ...]] = {
    "ldm": (None, "ddpm", "plms"),
    "super-resolution": (None, "dpmpp_2m"),
    "ddpm": (None, "ddim"),
    "ddim-grey": (None,),
    "score-sde": (None,),
    "improved-ddpm": (None,),
}


@pytest.mark.parametrize(("name", "scheduler"), [(name, each) for name, kinds in SAMPLERS.items() for each in kinds])
def test_model_draws_what_diffusers_draws(
    name: str,
    scheduler: str | None,
    places: dict[str, Path],
    pipelines: dict[str, Pipeline],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state, image = theirs(name, places[name], scheduler, monkeypatch)
    asked: dict[str, Any] = {"num_inference_steps": STEPS, "seed": SEEDS, "scheduler": scheduler, **told(name)}
    asked |= {"scheduler_settings": {"step_by": "batch"}} if name == "score-sde" else {}  # as diffusers corrects
    result = pipelines[name](output_type="np", num_images_per_prompt=len(SEEDS), **asked)
    close(result.latents, state)
    levels = [(array * 255).round().astype(np.uint8) for array in (result.array, image)]
    assert psnr(*levels) > 60  # a level here and there


@pytest.mark.parametrize("name", PLAIN)
def test_an_image_is_that_of_its_seed_alone(name: str, pipelines: dict[str, Pipeline]) -> None:
    asked: dict[str, Any] = {"num_inference_steps": 3, **told(name)}
    together = pipelines[name](seed=5, num_images_per_prompt=3, **asked).latents
    alone = pipelines[name](seed=6, **asked).latents
    # Batches of other sizes are other kernels of PyTorch: float32's rounding through three rows.
    assert np.abs(together[1] - alone[0]).max() <= 2e-5 * np.abs(alone).max()


@pytest.mark.parametrize("name", PLAIN)
def test_parts_make_the_same_images(name: str, pipelines: dict[str, Pipeline]) -> None:
    pipeline = pipelines[name]
    request = Request(num_inference_steps=2, num_images_per_prompt=5, seed=3, **told(name, 13, 17))
    whole = pipeline.generate(request)
    parts = list(pipeline.draw(pipeline.parts(request, 3)))
    assert [len(part.latents) for part in parts] == [3, 2]
    found = np.concatenate([part.latents for part in parts])
    assert np.abs(found - whole.latents).max() <= 2e-5 * np.abs(whole.latents).max()  # as for a seed alone


def test_several_images_are_enlarged_without_a_prompt(pipelines: dict[str, Pipeline]) -> None:
    pipeline, images = pipelines["super-resolution"], [picture(12), picture(12).rotate(90)]
    result = pipeline(image=images, num_inference_steps=2, num_images_per_prompt=2)
    assert result.pixels.shape == (4, 48, 48, 3)
    request = Request(image=images, num_inference_steps=2, num_images_per_prompt=2)
    found = np.concatenate([part.latents for part in pipeline.draw(pipeline.parts(request, 3))])
    assert np.abs(found - result.latents).max() <= 2e-5 * np.abs(result.latents).max()  # as for a seed alone


def test_classes_stand_for_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a U-Net in pixels that draws them, against diffusers' pipeline, which passes none by itself."""
    pipeline = diffusers.DDPMPipeline.from_pretrained(save_pipeline("ddpm", tmp_path / "saved"))
    unet = randomise(diffusers.UNet2DModel(**{**PLAIN["ddpm"].unet, "num_class_embeds": 4}))
    diffusers.DDPMPipeline(unet=unet, scheduler=pipeline.scheduler).save_pretrained(tmp_path / "classes")
    forward, labels = unet.forward, torch.tensor([3, 1])
    monkeypatch.setattr(unet, "forward", lambda sample, t: forward(sample, t, class_labels=labels))
    pipeline = diffusers.DDPMPipeline(unet=unet, scheduler=pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    drawing(pipeline, SEEDS, [FIRST], monkeypatch)
    expected = pipeline(batch_size=2, num_inference_steps=STEPS, output_type="np").images
    ours = torch_pipeline(load(tmp_path / "classes"))
    result = ours(class_labels=[3, 1], seed=SEEDS, num_inference_steps=STEPS, output_type="np")
    assert psnr(*((images * 255).round().astype(np.uint8) for images in (result.array, expected))) > 60  # as above
    request = Request(class_labels=[3, 1], seed=SEEDS, num_inference_steps=STEPS)
    parts = list(ours.draw(ours.parts(request, 1)))
    found = np.concatenate([part.latents for part in parts])
    assert np.abs(found - result.latents).max() <= 2e-5 * np.abs(result.latents).max()  # as for a seed alone
    with pytest.raises(LdmrtError, match="this model draws classes; expected class_labels, 0 to 3"):
        ours(num_inference_steps=1)


def test_an_image_in_pixels_goes_on_from_an_image(pipelines: dict[str, Pipeline]) -> None:
    """A strength of 0.2 of DDIM: the image, a little changed, and of its own size."""
    image = Image.fromarray(np.full((20, 28, 3), 90, np.uint8))
    asked: dict[str, Any] = {"image": image, "num_inference_steps": 50, "scheduler": "ddim"}
    near, far = (pipelines["ddpm"](strength=strength, **asked).pixels.astype(int) for strength in (0.04, 0.9))
    assert near.shape == (1, 20, 28, 3)
    assert np.abs(near - 90).mean() < np.abs(far - 90).mean() / 4


def test_a_grey_image_has_one_channel_as_numbers_and_three_as_levels(pipelines: dict[str, Pipeline]) -> None:
    result = pipelines["ddim-grey"](num_inference_steps=2, output_type="np")
    assert result.images.shape == (1, 12, 16, 1)
    assert result.pixels.shape == (1, 12, 16, 3)
    assert np.ptp(result.pixels, axis=-1).max() == 0


@pytest.mark.parametrize(
    ("name", "asked", "words"),
    [
        ("ldm", {"prompt": "a pear"}, "this model takes no prompt; expected a request without prompt"),
        ("ddpm", {"prompt": ["a pear", ""]}, "this model takes no prompt"),
        ("ddpm", {"negative_prompt": "a pear"}, "this model takes no negative_prompt"),
        ("ldm", {"prompt_embeds": np.zeros((1, 4, 8), np.float32)}, "this model takes no prompt_embeds"),
        ("ldm", {"class_labels": 1}, "this model takes no class_labels"),
        ("ddpm", {"num_images_per_prompt": 0}, "invalid num_images_per_prompt; expected at least 1"),
        ("super-resolution", {}, "this model is given an image; expected image"),
        ("super-resolution", {"image": picture(16), "width": 66}, "invalid width; expected a multiple of 4; found 66"),
    ],
)
def test_what_a_model_lacks_or_does_not_take(
    name: str, asked: dict[str, Any], words: str, pipelines: dict[str, Pipeline]
) -> None:
    with pytest.raises(LdmrtError, match=words):
        pipelines[name](num_inference_steps=2, **asked)


@pytest.mark.parametrize(
    ("name", "part", "change", "words"),
    [
        ("ldm", "", {"vqvae": None}, "vae: model_index.json names no vae"),
        ("ldm", "", {"vae": ["diffusers", "VQModel"]}, "model_index.json names vae and vqvae; expected one of them"),
        (
            "ldm",
            "",
            {"vqvae": ["diffusers", "MoVQ"]},
            "unsupported MoVQ in model_index.json; expected AutoencoderKL or",
        ),
        ("ldm", "vqvae", {"out_channels": 4}, "unsupported out_channels; expected 3, of an RGB image; found 4"),
        ("ldm", "vqvae", {"vq_embed_dim": 4}, "is not latent_channels of vae/config.json; expected 4; found 3"),
        ("super-resolution", "unet", {"in_channels": 3}, "and 3 of the small_image; expected 6; found 3"),
        ("ddpm", "unet", {"in_channels": 2}, "unsupported in_channels of unet/config.json; expected 1 or 3, of a grey"),
        ("ddpm", "unet", {"out_channels": 5}, "unsupported out_channels in unet/config.json; expected 3, or 6 with a"),
        ("ddpm", "unet", {"out_channels": 6}, "does not fit variance_type of scheduler_config.json; expected 6 with"),
        (
            "improved-ddpm",
            "scheduler",
            {"variance_type": "fixed_small"},
            "does not fit variance_type of .* found 6 with fix",
        ),
        ("ddpm", "", {"unet": ["diffusers", "UNet3DModel"]}, "unsupported UNet3DModel in model_index.json"),
    ],
)
def test_checkpoints_that_do_not_fit(
    name: str, part: str, change: dict[str, Any], words: str, places: dict[str, Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(places[name], tmp_path / "copy"))
    kind = {"": "model_index.json", "scheduler": "scheduler_config.json"}.get(part, "config.json")
    file = copy / part / kind
    changed = {**json.loads(file.read_text()), **change}
    file.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))
    with pytest.raises(LdmrtError, match=words):
        load(copy)


@pytest.mark.parametrize("name", PLAIN)
def test_checkpoint_saves_what_diffusers_loads(name: str, places: dict[str, Path], tmp_path: Path) -> None:
    """Under the names that its pipeline has for the parts."""
    load(places[name]).save(tmp_path / "saved")
    saved, own = (
        getattr(diffusers, PLAIN[name].pipeline).from_pretrained(p) for p in (tmp_path / "saved", places[name])
    )
    for part in own.components.keys() - {"scheduler"}:
        expected = getattr(own, part).state_dict()
        for key, value in getattr(saved, part).state_dict().items():
            assert torch.equal(value, expected[key])


def test_a_model_that_reads_a_prompt_needs_one(checkpoint: Path) -> None:
    with pytest.raises(LdmrtError, match="no prompt; expected prompt, or prompt_embeds"):
        torch_pipeline(load(checkpoint))(num_inference_steps=2)


def test_tolerance_notices_a_wrong_row(pipelines: dict[str, Pipeline]) -> None:
    """The small image conditions the network: another image gives other latents."""
    grey = Image.fromarray(np.full((SMALL, SMALL, 3), 127, np.uint8))
    images = [told("super-resolution")["image"], grey]
    shown, other = (pipelines["super-resolution"](image=image, num_inference_steps=3).latents for image in images)
    assert np.abs(shown - other).max() > 100 * TOLERANCE * np.abs(shown).max()
