"""Upscalers in pixels draw what a loop over diffusers' networks and schedulers draws; they have no pipeline there."""

import json
import shutil
from collections.abc import Callable
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
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.images.resizing import resize
from ldmrt.runtime.pipeline.conditioning.context import Context
from ldmrt.runtime.samplers.noise.counter import FIRST, NOISED, noise
from ldmrt.runtime.samplers.registry import find_scheduler

from ...runtime.bundle.test_bundle_paths import list_anew
from ...support.pipelines import randomise, save_pipeline
from ..families.test_stable_diffusion import SEEDS, STEPS, TOLERANCE, close, picture
from .test_conditioned_bundles import culprit, ldmrt, stage

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers
SMALL, CLASSES = 12, 30  # pixels of the small image; levels of noise
UNET: dict[str, Any] = {
    "sample_size": 24, "in_channels": 6, "out_channels": 3, "layers_per_block": 1, "norm_num_groups": 4,
    "block_out_channels": [16, 32], "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2,
    "add_attention": False, "num_class_embeds": CLASSES,
}  # fmt: skip
INDEX = {
    "_class_name": "PixelUpscalePipeline",
    "unet": ["diffusers", "UNet2DModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "low_res_scheduler": ["diffusers", "DDPMScheduler"],
    "max_noise_level": CLASSES - 1,
}
SCHEDULER: dict[str, Any] = {
    "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "timestep_spacing": "trailing",
    "clip_sample": True, "clip_sample_range": 1.0,
}  # fmt: skip


def save(folder: Path, times: int = 2) -> Path:
    """Write an upscaler with random weights, of diffusers' network and schedulers."""
    torch.manual_seed(3)
    unet = randomise(diffusers.UNet2DModel(**UNET))
    with torch.no_grad():  # predictions near 1, so that the clipping of the sampler leaves most values as they are
        unet.conv_out.weight.mul_(0.2)
    unet.save_pretrained(folder / "unet")
    diffusers.DDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    diffusers.DDPMScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "low_res_scheduler")
    (folder / "model_index.json").write_text(json.dumps(INDEX | {"enlarges": times}))
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("upscalers")
    return {times: save(root / str(times), times) for times in (2, 4)}


@pytest.fixture(scope="module")
def pipelines(places: dict[int, Path]) -> dict[int, Pipeline]:
    return {times: torch_pipeline(load(place)) for times, place in places.items()}


@torch.no_grad()
def theirs(
    place: Path, times: int, level: int, scheduler: str | None = None, mode: str = "bilinear"
) -> NDArray[np.float32]:
    """The large images of a loop by hand, with the noises of our streams."""
    unet = diffusers.UNet2DModel.from_pretrained(place / "unet")
    sampler = diffusers.DDIMScheduler.from_pretrained(place / "scheduler")
    noiser = diffusers.DDPMScheduler.from_pretrained(place / "low_res_scheduler")
    if scheduler is not None:
        line, changes = find_scheduler({}, scheduler)
        sampler = getattr(diffusers, line.class_name).from_config(sampler.config, **changes)
    small = torch.from_numpy(np.array(picture(SMALL), np.float32)).permute(2, 0, 1)[None].repeat(2, 1, 1, 1) / 127.5 - 1
    large = torch.nn.functional.interpolate(small, scale_factor=times, mode=mode)
    shape = tuple(large.shape)[1:]
    levels = torch.full((2,), level)
    beside = noiser.add_noise(large, torch.from_numpy(noise(SEEDS, NOISED, shape)), levels)
    sampler.set_timesteps(STEPS)
    state = torch.from_numpy(noise(SEEDS, FIRST, shape)) * sampler.init_noise_sigma
    for t in sampler.timesteps:
        seen = torch.cat([sampler.scale_model_input(state, t), beside], dim=1)
        state = sampler.step(unet(seen, t, class_labels=levels).sample, t, state).prev_sample
    return state.numpy()


@pytest.mark.parametrize("scheduler", [None, "dpmpp_2m", "unipc"])
@pytest.mark.parametrize(("times", "level"), [(2, 5), (2, 0), (4, 29)])
def test_an_image_is_enlarged(
    times: int, level: int, scheduler: str | None, places: dict[int, Path], pipelines: dict[int, Pipeline]
) -> None:
    asked: dict[str, Any] = {"num_inference_steps": STEPS, "seed": SEEDS, "scheduler": scheduler}
    result = pipelines[times](image=picture(SMALL), noise_level=level, num_images_per_prompt=2, **asked)
    close(result.latents, theirs(places[times], times, level, scheduler))
    assert result.pixels.shape == (2, times * SMALL, times * SMALL, 3)


def test_the_tolerance_notices_faults(places: dict[int, Path]) -> None:
    """A level off by one, and a small image that is enlarged otherwise."""
    expected = theirs(places[2], 2, 5)
    for other in (theirs(places[2], 2, 6), theirs(places[2], 2, 5, mode="nearest")):
        assert np.abs(other - expected).max() > 20 * TOLERANCE * np.abs(expected).max()


def test_an_image_is_that_of_its_seed_alone(pipelines: dict[int, Pipeline]) -> None:
    asked: dict[str, Any] = {"num_inference_steps": 3, "image": picture(SMALL)}
    together = pipelines[2](seed=5, num_images_per_prompt=3, **asked).latents
    alone = pipelines[2](seed=6, **asked).latents
    # Batches of other sizes are other kernels of PyTorch: float32's rounding through three rows.
    assert np.abs(together[1] - alone[0]).max() <= 2e-5 * np.abs(alone).max()


@pytest.mark.parametrize("times", [2, 4])
def test_parts_make_the_same_images(times: int, pipelines: dict[int, Pipeline]) -> None:
    """Of two images, the odd size of the first of which is that of all."""
    pipeline, images = pipelines[times], [picture(17).resize((17, 13)), picture(12)]
    request = Request(image=images, num_inference_steps=2, num_images_per_prompt=2, seed=3)
    whole = pipeline.generate(request)
    assert whole.pixels.shape == (4, times * 13, times * 17, 3)
    parts = list(pipeline.draw(pipeline.parts(request, 3)))
    assert [len(part.latents) for part in parts] == [3, 1]
    found = np.concatenate([part.latents for part in parts])
    assert np.abs(found - whole.latents).max() <= 2e-5 * np.abs(whole.latents).max()  # as for a seed alone


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "this model is given an image; expected image"),
        ({"image": 16, "noise_level": CLASSES}, "invalid noise_level; expected 0 to 29; found 30"),
        ({"image": 16, "width": 33}, "invalid width; expected a multiple of 2; found 33"),
        ({"image": 16, "mask_image": 16}, "this model takes no mask_image; expected image alone"),
        ({"image": 16, "prompt": "a pear"}, "this model takes no prompt"),
    ],
)
def test_what_an_upscaler_lacks_or_does_not_take(
    asked: dict[str, Any], words: str, pipelines: dict[int, Pipeline]
) -> None:
    given = {key: picture(value) if "image" in key else value for key, value in asked.items()}
    with pytest.raises(LdmrtError, match=words):
        pipelines[2](num_inference_steps=2, **given)


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("unet", {"in_channels": 3}, "is not 3 of the state and 3 of the enlarged_image; expected 6; found 3"),
        ("unet", {"in_channels": 2}, "unsupported out_channels in unet/config.json; expected 1, or 2 with a learned"),
        ("unet", {"num_class_embeds": None}, "num_class_embeds of unet/config.json is not above max_noise_level"),
        ("", {"max_noise_level": CLASSES}, "num_class_embeds of unet/config.json is not above max_noise_level"),
        ("", {"enlarges": 0}, "invalid enlarges in model_index.json; expected 1 to 16; found 0"),
        ("", {"enlarges": 2.0}, "invalid enlarges in model_index.json"),
        ("", {"low_res_scheduler": None}, "model_index.json names no low_res_scheduler"),
    ],
)
def test_checkpoints_that_do_not_fit(
    part: str, change: dict[str, Any], words: str, places: dict[int, Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(places[2], tmp_path / "copy"))
    file = copy / part / ("config.json" if part else "model_index.json")
    changed = {**json.loads(file.read_text()), **change}
    file.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))
    with pytest.raises(LdmrtError, match=words):
        load(copy)


def test_checkpoint_is_saved_as_it_was_loaded(places: dict[int, Path], tmp_path: Path) -> None:
    load(places[4]).save(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index == INDEX | {"enlarges": 4}
    saved, own = (diffusers.UNet2DModel.from_pretrained(p / "unet") for p in (tmp_path / "saved", places[4]))
    expected = own.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in saved.state_dict().items())


@pytest.fixture(scope="module")
def bundle(places: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certified bundle."""
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    assert ldmrt("export", places[2], folder, "--no-verify") == 0
    assert ldmrt("verify", folder, "--against", places[2], "--store", "--backend", "onnxruntime") == 0
    return folder


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_bundle_draws_what_its_checkpoint_draws(backend: str, bundle: Path, pipelines: dict[int, Pipeline]) -> None:
    asked: dict[str, Any] = {"image": picture(18).resize((22, 18)), "num_inference_steps": STEPS, "noise_level": 7}
    expected = pipelines[2](num_images_per_prompt=3, **asked)
    with open_pipeline(bundle, backend) as pipeline:
        found = pipeline(num_images_per_prompt=3, **asked)
    close(found.latents, expected.latents)
    assert np.abs(found.pixels.astype(int) - expected.pixels).max() <= 1  # a rounding


def test_commands(bundle: Path, tmp_path: Path) -> None:
    small, out = tmp_path / "small.png", tmp_path / "out.png"
    picture(17).save(small)
    assert ldmrt("upscale", bundle, small, "--steps", 2, "--noise-level", 3, "-o", out) == 0
    with Image.open(out) as image:
        assert image.size == (34, 34)
        facts = json.loads(image.text["ldmrt"])
    assert (facts["noise_level"], facts["image"], facts["width"]) == (3, "small.png", 34)
    assert ldmrt("generate", bundle, "--image", small, "--steps", 2, "-n", 2, "-o", tmp_path / "drawn.png") == 0
    with Image.open(tmp_path / "drawn-01.png") as image:
        assert image.size == (34, 34)
    assert ldmrt("upscale", bundle, small, "--noise-level", CLASSES, "-o", tmp_path / "none.png") != 0
    assert not (tmp_path / "none.png").exists()
    for command in ("verify", "inspect", "plan"):
        assert ldmrt(command, bundle) == 0


@pytest.mark.slow
def test_it_enlarges_what_another_stage_draws(places: dict[int, Path], tmp_path: Path) -> None:
    """The second stage of a cascade, both in pixels."""
    cascade, out = tmp_path / "cascade", tmp_path / "out.png"
    assert ldmrt("export", save_pipeline("ddpm", tmp_path / "base"), cascade, "--no-verify") == 0
    assert ldmrt("export", places[4], cascade, "--stage", "upscale", "--no-verify") == 0
    assert ldmrt("generate", cascade, "--steps", "base=3,upscale=2", "--noise-level", 3, "-o", out) == 0
    assert ldmrt("generate", cascade, "--steps", 3, "--until", "base", "-o", tmp_path / "base.png") == 0
    upscale = ("generate", cascade, "--from", "upscale", "--image", tmp_path / "base.png", "--noise-level", 3)
    assert ldmrt(*upscale, "--steps", 2, "-o", tmp_path / "alone.png") == 0
    images = [np.asarray(Image.open(path)).astype(int) for path in (out, tmp_path / "alone.png")]
    assert [image.shape for image in images] == [(64, 64, 3)] * 2
    # The stage alone is given the levels of a file, the cascade perhaps the numbers before they were rounded.
    assert np.abs(images[0] - images[1]).mean() < 2


def beside(**changes: Any) -> Callable[[Any], object]:
    return lambda s: s["reads"]["sample"][1].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        beside(times=0),
        beside(times=17),
        beside(times=2.0),
        beside(times=3),
        beside(scheduler=""),
        beside(scheduler="scheduler2"),
        beside(**{"from": "noised_image"}),
        lambda s: s["reads"]["sample"][1].pop("times"),
        lambda s: s["reads"]["sample"].append({"from": "small_image"}),
        lambda s: s["reads"]["class_labels"][0].update({"from": "class", "count": CLASSES}),
    ],
)
def test_a_stage_that_cannot_be_is_refused(change: Callable[[Any], object], bundle: Path, tmp_path: Path) -> None:
    """A factor of three is valid by itself, but the certificate is of a factor of two."""
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    stage(change)(copy)
    list_anew(copy)
    assert ldmrt("verify", copy) != 0


def test_faults_of_the_conditioning_are_found(
    bundle: Path, places: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert culprit(bundle, places[2]) == ""
    module = "ldmrt.runtime.pipeline.conditioning.beside"
    with monkeypatch.context() as patched:
        patched.setattr(f"{module}.resize", lambda images, size, _: resize(images, size, "nearest"))
        assert culprit(bundle, places[2]) == "guidance or conditioning"
    with monkeypatch.context() as patched:  # [0, 1] in the place of [-1, 1]
        patched.setattr(f"{module}._small_image", lambda context, source: context.colours)
        assert culprit(bundle, places[2]) == "guidance or conditioning"
    with monkeypatch.context() as patched:
        level = Context.noise_level.fget  # type: ignore[attr-defined]
        patched.setattr(Context, "noise_level", property(lambda context: level(context) + 1))
        assert culprit(bundle, places[2]) == "guidance or conditioning"
