"""PixArt-Sigma and PixArt-Alpha draw what diffusers' pipelines draw, from PyTorch's networks and from a bundle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from numpy.typing import NDArray

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.model.library.pixart import GridPositions, Mask
from ldmrt.runtime import LdmrtError
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.pipeline.request.images import small_mask
from ldmrt.runtime.samplers.noise.counter import FIRST, IMAGE, noise
from ldmrt.runtime.samplers.registry import SCHEDULERS, find_scheduler
from ldmrt.runtime.tensors import Engine

from ....support.families.compared import Saved, close, compare_components, crossed, decibels, ours_of, theirs
from ....support.families.pixart import PIXART, save_pixart
from ...test_tasks import drawing, mask, picture

# Capitals and spaces, which the pipelines drop; texts of other lengths, whose padding is masked.
PROMPTS, SEEDS, STEPS = [" A red Apple, noto style", "two pears", "a penguin"], [3, 4, 9], 5
SIZES = [(32, 32), (24, 64), (40, 72)]  # the last two have an odd number of patches along a side, or along both
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:.* it has no parity certificate"),
    pytest.mark.filterwarnings("ignore:request. .*is far from the model's own size"),
]


@pytest.fixture(scope="module")
def places(pixart_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The folders of the checkpoints, each saved when it is first asked for."""
    return Saved(save_pixart, tmp_path_factory.mktemp("pixart"), sigma=pixart_checkpoint)


def reference(folder: Path, name: str, scheduler: str | None = None) -> Any:
    """Return diffusers' own pipeline, with another scheduler."""
    pipeline = theirs(folder, PIXART[name][0])
    if scheduler is None:
        return pipeline
    config, changes = pipeline.scheduler.config, find_scheduler({}, scheduler)[1]
    import diffusers

    own = getattr(diffusers, SCHEDULERS[scheduler].class_name).from_config(config, **changes)
    return type(pipeline)(**{**pipeline.components, "scheduler": own})


def expected(
    folder: Path, name: str, height: int, width: int, *, count: int = 2, output_type: str = "latent",
    scheduler: str | None = None, **asked: Any,
) -> NDArray[np.float32]:  # fmt: skip
    """Return what diffusers' own pipeline draws, from our noise."""
    pipeline = reference(folder, name, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    factor = pipeline.vae_scale_factor
    x = noise(SEEDS[:count], FIRST, (4, height // factor, width // factor))
    given = {"prompt": PROMPTS[:count], "num_inference_steps": STEPS, **asked, "latents": torch.from_numpy(x)}
    if "negative_prompt" in given:
        given["negative_prompt"] = [given["negative_prompt"]] * count
    images = pipeline(**given, height=height, width=width, output_type=output_type, use_resolution_binning=False).images
    return np.asarray(images)


ASKED: list[dict[str, Any]] = [
    {"guidance_scale": 4.5},
    {"guidance_scale": 1.0, "scheduler": "euler"},
    {"guidance_scale": 4.5, "scheduler": "ddim", "negative_prompt": "Blurred", "num_inference_steps": 4, "count": 3},
    {"guidance_scale": 3.0, "scheduler": "unipc", "count": 1},
]


def drawn(pipeline: Pipeline, height: int, width: int, *, count: int = 2, **asked: Any) -> Any:
    return pipeline(
        PROMPTS[:count], seed=SEEDS[:count], height=height, width=width, **{"num_inference_steps": STEPS, **asked}
    )


@pytest.mark.parametrize("asked", ASKED, ids=["guided", "plain", "negative prompt", "one image"])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("name", PIXART)
def test_draws_what_diffusers_draws(name: str, height: int, width: int, asked: dict[str, Any], places: Saved) -> None:
    ours = drawn(ours_of(places[name]), height, width, **asked)
    close(ours.latents, expected(places[name], name, height, width, **asked))


@pytest.mark.parametrize("name", PIXART)
def test_images_are_diffusers(name: str, places: Saved) -> None:
    asked = {"guidance_scale": 4.5, "count": 3}
    ours = np.asarray(drawn(ours_of(places[name]), 40, 72, output_type="np", **asked).images)
    found = expected(places[name], name, 40, 72, output_type="np", **asked)
    assert ours.shape == (3, 40, 72, 3)
    assert decibels(ours, found) >= 60


@pytest.mark.slow(minutes=0.5)
@pytest.mark.parametrize(("height", "width"), SIZES[1:])
def test_bundle_draws_what_diffusers_draws(height: int, width: int, pixart_bundle: Path, places: Saved) -> None:
    with open_pipeline(pixart_bundle) as pipeline:
        for asked in ASKED:
            ours = drawn(pipeline, height, width, **asked)
            close(ours.latents, expected(places["sigma"], "sigma", height, width, **asked))
        names = [spec.name for spec in pipeline.engines["transformer"].inputs]
    assert names == ["hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask"]
    assert (pipeline.stage.space.unit, pipeline.stage.own, pipeline.stage.largest) == (8, (32, 32), 0)


def test_each_image_is_that_of_its_seed_alone(places: Saved) -> None:
    pipeline = ours_of(places["sigma"])
    many = drawn(pipeline, 32, 32, count=3, guidance_scale=4.5).latents
    for i, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        alone = pipeline(prompt, seed=seed, num_inference_steps=STEPS, guidance_scale=4.5).latents[0]
        assert np.abs(many[i] - alone).max() <= 1e-5 * np.abs(alone).max()  # sums of float32 in another order


def _transformer(pipeline: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    batch, _, height, width = given["hidden_states"].shape
    sizes = torch.tensor([[4.0 * height, 4.0 * width]]).expand(batch, -1)
    ratio = torch.tensor([[height / width]]).expand(batch, -1)
    out = pipeline.transformer(
        **given, added_cond_kwargs={"resolution": sizes, "aspect_ratio": ratio}, return_dict=False
    )
    return out[0].chunk(2, dim=1)[0]


CALLED: dict[str, Any] = {
    "text_encoder": lambda pipeline, given: pipeline.text_encoder(
        **given, attention_mask=(given["input_ids"] != pipeline.tokenizer.pad_token_id).long()
    )[0],
    "transformer": _transformer,
    "vae_decoder": lambda pipeline, given: pipeline.vae.decode(given["latent_sample"]).sample,
    "vae_encoder": lambda pipeline, given: pipeline.vae.encode(given["sample"]).latent_dist.parameters,
}


def _compare(name: str, folder: Path, engines: Callable[[str], Engine]) -> None:
    """Compare every component with diffusers' own network, at two batches and two odd sizes."""
    compare_components(theirs(folder, PIXART[name][0]), folder, CALLED, engines, ((1, 40, 72), (3, 24, 56)))


@pytest.mark.parametrize("name", PIXART)
def test_each_component_is_diffusers(name: str, places: Saved) -> None:
    _compare(name, places[name], lambda part: ours_of(places[name]).engines[part])


@pytest.mark.slow(minutes=0.5)
def test_each_component_of_a_bundle_is_diffusers(pixart_bundle: Path, places: Saved) -> None:
    with open_pipeline(pixart_bundle) as pipeline:
        _compare("sigma", places["sigma"], lambda part: pipeline.engines[part])


@pytest.mark.parametrize(("height", "width", "setting"), crossed([(48, 64), *SIZES[1:]]))
@pytest.mark.parametrize("inpaints", [False, True], ids=["image to image", "inpainting"])
def test_an_image_to_start_from(inpaints: bool, height: int, width: int, setting: int, places: Saved) -> None:
    """diffusers has no such pipeline: the last of its timesteps, from the image's latents with their noise.

    What a mask keeps is put back after every step, with the noise of the next one.
    """
    image, steps = picture().resize((width, height)), 8
    scale, left = ((4.5, 4), (1.0, 6), (7.5, 3))[setting]  # of the steps those that are taken
    area = mask().resize((width, height), 0)  # without grey between black and white
    ours = ours_of(places["sigma"])(
        PROMPTS[:2], seed=SEEDS[:2], image=image, mask_image=area if inpaints else None, strength=left / steps,
        num_inference_steps=steps, guidance_scale=scale,
    )  # fmt: skip
    pipeline = reference(places["sigma"], "sigma")
    pixels = torch.from_numpy(np.array(image, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        encoded = pipeline.vae.encode(pixels).latent_dist
    sample, fresh = (
        torch.from_numpy(noise(SEEDS[:2], stream, (4, height // 4, width // 4))) for stream in (IMAGE, FIRST)
    )
    latents = (encoded.mean + encoded.std * sample) * pipeline.vae.config.scaling_factor
    pipeline.scheduler.set_timesteps(steps)
    times = pipeline.scheduler.timesteps[-left:]
    drawn_anew = torch.from_numpy(small_mask(np.array(area, np.float32)[None, None] / 255, 4))

    def put_back(step: int, _: int, x: torch.Tensor) -> None:
        later = times[step + 1 : step + 2]
        kept = pipeline.scheduler.add_noise(latents, fresh, later.expand(2)) if len(later) else latents
        x.copy_(torch.lerp(kept, x, drawn_anew))

    noised = pipeline.scheduler.add_noise(latents, fresh, times[:1].expand(2))
    found = pipeline(
        PROMPTS[:2], timesteps=times.tolist(), latents=noised,
        guidance_scale=scale, height=height, width=width, output_type="latent", use_resolution_binning=False,
        callback=put_back if inpaints else None,
    )  # fmt: skip
    close(ours.latents, found.images.numpy())


def test_draws_from_a_distilled_model(places: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """PixArt-LCM is a PixArt-Alpha with another scheduler, which draws fresh noise, and without guidance."""
    pipeline = reference(places["alpha"], "alpha", "lcm")
    drawing(pipeline, SEEDS[:2], [], monkeypatch)
    asked = {"num_inference_steps": 4, "guidance_scale": 0.0}
    ours = drawn(ours_of(places["alpha"]), 32, 64, scheduler="lcm", **asked)
    x = torch.from_numpy(noise(SEEDS[:2], FIRST, (4, 8, 16)))
    found = pipeline(
        PROMPTS[:2], latents=x, height=32, width=64, output_type="latent", use_resolution_binning=False, **asked
    )
    close(ours.latents, found.images.numpy())


def test_a_prompt_is_read_in_small_letters_without_spaces_around(places: Saved) -> None:
    pipeline = ours_of(places["sigma"])
    one, other = (pipeline(text, num_inference_steps=2).latents for text in ("  Two PEARS ", "two pears"))
    assert (one == other).all()


@pytest.mark.parametrize(("name", "tokens"), [("sigma", 300), ("alpha", 120)])
def test_a_prompt_fits_as_many_tokens_as_in_diffusers(name: str, tokens: int, places: Saved) -> None:
    """A text that is longer is cut, and the warning says where."""
    with pytest.warns(UserWarning, match=rf"prompt has .* tokens, {tokens - 1} fit"):
        ours = ours_of(places[name])(" ".join(["pear"] * 200), num_inference_steps=2, seed=3, height=32, width=32)
    found = expected(
        places[name], name, 32, 32, count=1, num_inference_steps=2, prompt=[" ".join(["pear"] * 200)]
    )  # fmt: skip
    close(ours.latents, found)


def test_reads_as_many_tokens_as_are_asked_for(places: Saved) -> None:
    """Fewer tokens hold the same prompt, and the same mask of it: the images are the same but for float32's sums."""
    asked = {"num_inference_steps": 3, "seed": 3, "guidance_scale": 4.5, "height": 32, "width": 32}
    few = torch_pipeline(load(places["sigma"], max_sequence_length=40))("two pears", **asked)
    close(few.latents, ours_of(places["sigma"])("two pears", **asked).latents)


EMBEDDED = np.zeros((1, 300, 64), np.float32)


def test_embeddings_stand_for_prompts(places: Saved) -> None:
    """They are those of diffusers' `encode_prompt`, with their masks."""
    reading, ours = theirs(places["sigma"], PIXART["sigma"][0]), ours_of(places["sigma"])
    with torch.no_grad():
        prompt, mask, negative, negative_mask = reading.encode_prompt("two pears", negative_prompt="blurred")
    asked = {"seed": 3, "num_inference_steps": 3, "guidance_scale": 4.5}
    sides = [
        {"prompt_embeds": prompt, "prompt_attention_mask": mask},
        {"negative_prompt_embeds": negative, "negative_prompt_attention_mask": negative_mask},
    ]
    expected = ours("two pears", negative_prompt="blurred", **asked).latents
    close(ours(**sides[0], **sides[1], **asked).latents, expected)
    close(ours(**sides[0], negative_prompt="blurred", **asked).latents, expected)
    close(ours("two pears", **sides[1], **asked).latents, expected)


def test_a_mask_is_for_its_models_alone(checkpoint: Path) -> None:
    embedded = np.zeros((1, 77, 32), np.float32)
    with pytest.raises(LdmrtError, match="this model takes no prompt_attention_mask"):
        torch_pipeline(load(checkpoint))(prompt_embeds=embedded, prompt_attention_mask=np.ones((1, 77)))


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"height": 36}, "invalid height; expected a multiple of 8"),
        ({"prompt_3": "pears"}, "this model takes no prompt_3"),
        ({"clip_skip": 1}, "this model takes no clip_skip"),
        ({"deep_cache": 2}, "this model has no U-Net"),
        (
            {"prompt": None, "prompt_embeds": EMBEDDED},
            "prompt embeddings without a mask, which this model asks for; expected prompt_attention_mask",
        ),
        ({"negative_prompt_embeds": EMBEDDED, "guidance_scale": 4.5}, "expected negative_prompt_attention_mask"),
        (
            {"prompt": None, "prompt_embeds": EMBEDDED, "prompt_attention_mask": np.ones((1, 77))},
            "wrong shape of prompt_attention_mask; expected one number for each of 300 tokens",
        ),
        ({"prompt_attention_mask": np.ones((1, 300))}, "prompt_attention_mask without prompt_embeds"),
    ],
)
def test_refuses(asked: dict[str, Any], problem: str, places: Saved) -> None:
    with pytest.raises(LdmrtError, match=problem):
        ours_of(places["sigma"])(**{"prompt": "two pears", "num_inference_steps": 2, **asked})


@pytest.mark.parametrize(("base", "scale"), [(64, 2.0), (128, 4.0), (16, 0.5), (64, 1.0)])
def test_positions_are_exact(base: int, scale: float) -> None:
    """Those of every published model, against diffusers' in float64: both are within a unit of float32's last place."""
    for height, width in ((base, 16), (37, 111)):
        found = GridPositions(1152, 2, base, scale)(torch.zeros(1, 4, 2 * height, 2 * width))[0]
        wanted = get_2d_sincos_pos_embed(1152, (height, width), base_size=base, interpolation_scale=scale)
        assert (found - wanted).abs().max() <= 2**-23


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_masked_has_no_weight(dtype: torch.dtype) -> None:
    """Its exponential is 0 in every precision, however large another score is that a half holds."""
    mask = Mask()(torch.tensor([[1.0, 0.0]], dtype=dtype), torch.zeros(1, 3, 8, dtype=dtype))
    assert mask.shape == (1, 3, 2)
    assert (mask[0, 0] == torch.tensor([0.0, -10000.0])).all()
    assert torch.softmax(mask[0, 0] + torch.tensor([0.0, 5000.0], dtype=dtype), 0).tolist() == [1.0, 0.0]
