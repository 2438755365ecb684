"""Models that are told more than a prompt draw what diffusers' pipelines draw: an image, a noise level, a class."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.runtime import LdmrtError, Pipeline, Request
from ldmrt.runtime.samplers.noise.counter import FIRST, NOISED
from ldmrt.runtime.samplers.registry import find_scheduler

from ...support.families import CONDITIONED
from ...support.pipelines import save_pipeline
from ..families.test_stable_diffusion import PROMPTS, SEEDS, STEPS, TOLERANCE, close, picture
from ..test_tasks import drawing

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers
SMALL = 12  # pixels of an image that is enlarged
TOLD: dict[str, dict[str, Any]] = {  # beside the prompt
    "pix2pix": {"image": picture(16)},
    "upscaler": {"image": picture(SMALL)},
    "classes": {"class_labels": 3},
    "ldm3d": {},
    "ldm3d-4c": {},
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("conditioned")
    return {name: save_pipeline(name, root / name) for name in CONDITIONED}


@pytest.fixture(scope="module")
def pipelines(places: dict[str, Path]) -> dict[str, Pipeline]:
    return {name: torch_pipeline(load(place)) for name, place in places.items()}


def theirs(
    name: str, place: Path, scheduler: str | None, monkeypatch: pytest.MonkeyPatch, **asked: Any
) -> NDArray[np.float32]:
    """The latents of diffusers' own pipeline."""
    pipeline = getattr(diffusers, CONDITIONED[name].pipeline).from_pretrained(place)
    if scheduler is not None:
        line, changes = find_scheduler({}, scheduler)
        pipeline.scheduler = getattr(diffusers, line.class_name).from_config(pipeline.scheduler.config, **changes)
    pipeline.set_progress_bar_config(disable=True)
    if name == "classes":  # by hand: the pipeline passes no class
        labels, forward = torch.tensor(asked.pop("class_labels")), pipeline.unet.forward

        def labelled(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return forward(sample, *args, class_labels=labels.repeat(len(sample) // len(labels)), **kwargs)

        pipeline.unet.forward = labelled
    drawing(pipeline, SEEDS, [NOISED, FIRST] if name == "upscaler" else [FIRST], monkeypatch)
    latents = pipeline(PROMPTS, num_inference_steps=STEPS, output_type="latent", **asked).images
    return latents.numpy()


@pytest.mark.parametrize("scheduler", [None, "dpmpp_2m_karras"])
@pytest.mark.parametrize("scales", [(4.0, 1.5), (7.5, 1.0), (1.0, 1.5), (4.0, 0.0)], ids=str)
def test_an_image_is_edited(
    scales: tuple[float, float],
    scheduler: str | None,
    places: dict[str, Path],
    pipelines: dict[str, Pipeline],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """InstructPix2Pix has three rows of guidance, or one where either scale is too small."""
    asked: dict[str, Any] = {"guidance_scale": scales[0], "image_guidance_scale": scales[1]}
    image, negative = [picture(16)] * 2, ["blurred"] * 2
    expected = theirs(
        "pix2pix", places["pix2pix"], scheduler, monkeypatch, image=image, negative_prompt=negative, **asked
    )
    asked |= {"num_inference_steps": STEPS, "seed": SEEDS, "scheduler": scheduler}
    close(pipelines["pix2pix"](PROMPTS, image=picture(16), negative_prompt="blurred", **asked).latents, expected)


@pytest.mark.parametrize("scheduler", [None, "euler_a"])
@pytest.mark.parametrize(("guidance", "level"), [(4.0, None), (1.0, 0), (7.5, 350)])
def test_an_image_is_enlarged(
    guidance: float,
    level: int | None,
    scheduler: str | None,
    places: dict[str, Path],
    pipelines: dict[str, Pipeline],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {"guidance_scale": guidance} | ({} if level is None else {"noise_level": level})
    images = [picture(SMALL)] * 2
    expected = theirs("upscaler", places["upscaler"], scheduler, monkeypatch, image=images, **asked)
    asked |= {"num_inference_steps": STEPS, "seed": SEEDS, "scheduler": scheduler}
    result = pipelines["upscaler"](PROMPTS, image=picture(SMALL), **asked)
    close(result.latents, expected)
    assert result.pixels.shape == (2, 4 * SMALL, 4 * SMALL, 3)


@pytest.mark.parametrize(("name", "size"), [("pix2pix", 16), ("upscaler", SMALL)])
def test_the_noise_of_torchs_generators(
    name: str, size: int, places: dict[str, Path], pipelines: dict[str, Pipeline]
) -> None:
    """The upscaler draws that of the image first, then the latents, then that of the rows."""
    pipeline = getattr(diffusers, CONDITIONED[name].pipeline).from_pretrained(places[name])
    pipeline.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    asked: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": 4.0}
    images = [picture(size)] * 2
    latents = pipeline(PROMPTS, image=images, generator=generators, output_type="latent", **asked).images
    asked |= {"seed": SEEDS, "scheduler": "euler_a", "noise": "torch-cpu"}
    close(pipelines[name](PROMPTS, image=picture(size), **asked).latents, latents.numpy())


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_class_is_drawn(
    guidance: float, places: dict[str, Path], pipelines: dict[str, Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = theirs(
        "classes", places["classes"], None, monkeypatch, class_labels=[4, 2], guidance_scale=guidance,
        height=16, width=16,
    )  # fmt: skip
    asked: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": guidance}
    close(pipelines["classes"](PROMPTS, class_labels=[4, 2], seed=SEEDS, **asked).latents, expected)
    other = pipelines["classes"](PROMPTS, class_labels=[4, 3], seed=SEEDS, **asked).latents
    assert np.abs(other - expected)[1].max() > 100 * TOLERANCE


@pytest.mark.parametrize("name", ["ldm3d", "ldm3d-4c"])
def test_a_depth_is_drawn(
    name: str, places: dict[str, Path], pipelines: dict[str, Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a current Pillow diffusers' pipeline fails to save a depth, so its decoder's output is converted here."""
    pipeline = diffusers.StableDiffusionLDM3DPipeline.from_pretrained(places[name])
    pipeline.set_progress_bar_config(disable=True)
    pipeline.image_processor.postprocess = lambda image, **how: (image, image)
    decoded, decode = list[torch.Tensor](), pipeline.vae.decode
    pipeline.vae.decode = lambda z, **how: decoded.append(z) or decode(z, **how)
    asked: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": 4.0}
    drawing(pipeline, SEEDS, [FIRST], monkeypatch)
    image = pipeline(PROMPTS, height=16, width=16, **asked).rgb
    result = pipelines[name](PROMPTS, seed=SEEDS, **asked)
    close(result.latents, decoded[0].numpy() * pipeline.vae.config.scaling_factor)
    values = (image / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(result.pixels - (values[..., :3] * 255).round()).max() <= 1  # a rounding
    assert np.array_equal(result.pixels, result.array[..., :3])
    assert result.depth is not None
    assert result.depth.dtype == np.uint16
    if name == "ldm3d":
        levels = (values[..., 3:] * 255).round()
        assert np.abs(result.array[..., 3:] - levels).max() <= 1
        depth = [pipeline.image_processor.rgblike_to_depthmap(one[..., 3:].astype(np.int32)) for one in result.array]
        assert np.array_equal(result.depth, np.stack(depth))
    else:  # float32 through a handful of rows is off by as much of 16 bits
        assert np.abs(result.depth - values[..., 3] * 65535).max() <= 65535 * TOLERANCE
    assert np.ptp(result.depth) > 256  # more than one of the two bytes counts
    whole = pipelines[name](PROMPTS, seed=SEEDS, output_type="np", **asked)
    assert whole.images.shape == (2, 16, 16, 3)
    assert whole.depth is not None
    assert np.array_equal(whole.depth, result.depth)


@pytest.mark.parametrize("name", CONDITIONED)
def test_an_image_is_that_of_its_seed_alone(name: str, pipelines: dict[str, Pipeline]) -> None:
    asked: dict[str, Any] = {"num_inference_steps": 3, "num_images_per_prompt": 3}
    asked |= TOLD[name]
    together = pipelines[name]("a pear", seed=5, **asked).latents
    alone = pipelines[name]("a pear", seed=6, **{**asked, "num_images_per_prompt": 1}).latents
    # Batches of other sizes are other kernels of PyTorch: float32's rounding through three rows.
    assert np.abs(together[1] - alone[0]).max() <= 2e-5 * np.abs(alone).max()


@pytest.mark.parametrize("name", ["pix2pix", "upscaler", "classes"])
def test_parts_make_the_same_images(name: str, pipelines: dict[str, Pipeline]) -> None:
    """Of one image or class for each prompt; the first image's odd size is that of all."""
    pipeline, images = pipelines[name], [picture(17).resize((17, 13)), picture(12)]
    asked: dict[str, Any] = {"class_labels": [1, 4]} if name == "classes" else {"image": images}
    request = Request(PROMPTS, num_inference_steps=2, num_images_per_prompt=2, **asked)
    whole = pipeline.generate(request)
    parts = list(pipeline.draw(pipeline.parts(request, 3)))
    assert [len(part.latents) for part in parts] == [3, 1]
    found = np.concatenate([part.latents for part in parts])
    assert np.abs(found - whole.latents).max() <= 2e-5 * np.abs(whole.latents).max()  # as for a seed alone
    if name == "upscaler":
        assert whole.pixels.shape == (4, 4 * 13, 4 * 17, 3)
        assert pipeline.images_at_once(request) == (16 * 512 * 512) // (16 * 13 * 17)


@pytest.mark.parametrize(
    ("name", "asked", "words"),
    [
        ("pix2pix", {}, "this model is given an image; expected image"),
        ("pix2pix", {"image": "image", "mask_image": "image"}, "this model takes no mask_image; expected image alone"),
        ("pix2pix", {"image": "image", "class_labels": 1}, "this model takes no class_labels"),
        ("upscaler", {"image": "image", "noise_level": 351}, "invalid noise_level; expected 0 to 350; found 351"),
        ("upscaler", {"image": "image", "image_guidance_scale": 2.0}, "this model takes no image_guidance_scale"),
        ("upscaler", {"image": "image", "width": 66}, "invalid width; expected a multiple of 4; found 66"),
        ("ldm3d", {"image": "image"}, "this model takes no image; expected a prompt alone"),
        ("classes", {}, "this model draws classes; expected class_labels, 0 to 4"),
        ("classes", {"class_labels": 5}, "invalid class_labels; expected 0 to 4; found 5"),
        ("classes", {"class_labels": [1, 2]}, "wrong length of class_labels; expected 1"),
        ("classes", {"class_labels": 1, "noise_level": 3}, "this model takes no noise_level"),
    ],
)
def test_what_a_model_lacks_or_does_not_take(
    name: str, asked: dict[str, Any], words: str, pipelines: dict[str, Pipeline]
) -> None:
    given = {key: picture(16) if value == "image" else value for key, value in asked.items()}
    with pytest.raises(LdmrtError, match=words):
        pipelines[name]("a pear", num_inference_steps=2, **given)


@pytest.mark.parametrize(
    ("name", "part", "change", "words"),
    [
        ("classes", "unet", {"class_embed_type": "timestep"}, "unsupported class_embed_type in unet/config.json"),
        ("pix2pix", "unet", {"in_channels": 9}, "and 4 of the image_latents; expected 8; found 9"),
        ("upscaler", "unet", {"in_channels": 4}, "and 3 of the noised_image; expected 7; found 4"),
        (
            "ldm3d",
            "",
            {"_class_name": "StableDiffusionPipeline"},
            "in_channels; expected 3, of an RGB image",
        ),
        ("ldm3d", "vae", {"out_channels": 3}, "unsupported out_channels; expected 6, of an RGB image and its depth"),
        ("upscaler", "", {"max_noise_level": "abc"}, "invalid max_noise_level in model_index.json; expected 0 to"),
        ("upscaler", "", {"max_noise_level": -5}, "invalid max_noise_level in model_index.json"),
        ("upscaler", "", {"max_noise_level": 1000}, "is not above max_noise_level; expected above 1000; found 1000"),
        ("upscaler", "", {"low_res_scheduler": ["diffusers", "EulerDiscreteScheduler"]}, "unsupported EulerDiscrete"),
        ("upscaler", "", {"low_res_scheduler": None}, "model_index.json names no low_res_scheduler"),
    ],
)
def test_checkpoints_that_do_not_fit(
    name: str, part: str, change: dict[str, Any], words: str, places: dict[str, Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(places[name], tmp_path / "copy"))
    file = copy / part / ("config.json" if part else "model_index.json")
    file.write_text(
        json.dumps({key: v for key, v in {**json.loads(file.read_text()), **change}.items() if v is not None})
    )
    with pytest.raises(LdmrtError, match=words):
        load(copy)
