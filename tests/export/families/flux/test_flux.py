"""FLUX.1 draws what diffusers' pipelines draw, from PyTorch's networks and from a bundle."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxPosEmbed
from numpy.typing import NDArray

from ldmrt.export.components.table import components
from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.export.graph.to_onnx import to_onnx
from ldmrt.export.parity.origin import other_graph
from ldmrt.model import load
from ldmrt.model.library.flux import Pack, Positions, RotaryPositions, Unpack
from ldmrt.runtime import LdmrtError, LdmrtWarning, Request
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.bundle.stage_of_configs import FLUX, FLUX_PIPELINES, SD3, SD3_PIPELINES, stage_of_configs
from ldmrt.runtime.bundle.stages import Guide, Row
from ldmrt.runtime.bundle.stages_json import stages_from_json
from ldmrt.runtime.samplers.noise.counter import FIRST, noise

from ....support.families.compared import Saved, close, ours_of, theirs
from ....support.families.flux import ASKED, PROMPTS, SEEDS, latents_of
from ...test_tasks import mask, picture

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:.* it has no parity certificate"),
    pytest.mark.filterwarnings("ignore:request. .*is far from the model's own size"),
]


def expected(folder: Path, kind: str, height: int, width: int, **asked: Any) -> NDArray[np.float32]:
    """Return the latents of diffusers' own pipeline, from our noise."""
    pipeline = theirs(folder, kind)
    factor = pipeline.vae_scale_factor
    x = noise(SEEDS, FIRST, (16, height // factor, width // factor))
    given = {**ASKED, **asked, "latents": Pack()(torch.from_numpy(x)), "height": height, "width": width}
    return latents_of(pipeline(**given, output_type="latent").images, height, width)


@pytest.mark.parametrize("asked", [{}, {"guidance_scale": 1.0, "prompt_2": ["pears", "a penguin"]}], ids=["", "other"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 128), (48, 80)])
@pytest.mark.parametrize("name", ["dev", "schnell"])
def test_draws_what_diffusers_draws(name: str, height: int, width: int, asked: dict[str, Any], flux: Saved) -> None:
    """The last size has an odd number of tokens along both sides."""
    ours = ours_of(flux[name])(**{**ASKED, **asked}, seed=SEEDS, height=height, width=width)
    close(ours.latents, expected(flux[name], "FluxPipeline", height, width, **asked))


def test_guidance_is_the_networks_own(flux: Saved) -> None:
    """It changes what dev draws, and nothing of schnell; both run once for an image."""
    for name, changes in (("dev", True), ("schnell", False)):
        pipeline = ours_of(flux[name])
        one, other = (pipeline("two pears", guidance_scale=scale, num_inference_steps=2, height=64, width=64)
                      for scale in (1.0, 5.0))  # fmt: skip
        assert (one.latents != other.latents).any() == changes
        assert pipeline.guidance_rows(Request("two pears", negative_prompt="blurred")) == 1


@pytest.mark.parametrize("kind", [*FLUX_PIPELINES, *SD3_PIPELINES])
def test_guidance_by_default_is_that_of_the_pipeline(kind: str) -> None:
    """A network that is not told of guidance has none."""
    import diffusers

    wanted = inspect.signature(getattr(diffusers, kind).__call__).parameters["guidance_scale"].default
    channels = 64 * (1 + {"FluxControlPipeline": 1, "FluxFillPipeline": 5}.get(kind, 0))
    network = {
        "_class_name": FLUX if kind.startswith("Flux") else SD3,
        "guidance_embeds": True,
        "in_channels": channels,
    }
    vae = {"block_out_channels": [8, 8, 8, 8], "latent_channels": 16}
    stage = stage_of_configs(network, vae, {"_class_name": kind})
    assert stage.guidance_scale == wanted
    (read,) = stages_from_json([stage.to_json()])
    assert read == stage
    (old,) = stages_from_json([{name: value for name, value in stage.to_json().items() if name != "guidance_scale"}])
    assert old == replace(stage, guidance_scale=5.0)


def test_draws_with_the_pipelines_own_guidance(flux: Saved) -> None:
    asked = {name: value for name, value in ASKED.items() if name != "guidance_scale"}
    reference = theirs(flux["dev"], "FluxPipeline")
    latents = Pack()(torch.from_numpy(noise(SEEDS, FIRST, (16, 8, 8))))
    wanted = reference(**asked, latents=latents, height=64, width=64, output_type="latent").images
    close(ours_of(flux["dev"])(**asked, seed=SEEDS, height=64, width=64).latents, latents_of(wanted, 64, 64))


@pytest.mark.parametrize(
    "asked",
    [
        {"negative_prompt": ["two oranges", "a lemon"], "true_cfg_scale": 4.0},
        {"negative_prompt": "", "negative_prompt_2": "a lemon", "true_cfg_scale": 2.5},
    ],
    ids=["", "other"],
)
@pytest.mark.parametrize(
    ("name", "height", "width"), [("dev", 64, 64), ("dev", 96, 128), ("dev", 48, 80), ("schnell", 64, 64)]
)
def test_negative_prompt(name: str, height: int, width: int, asked: dict[str, Any], flux: Saved) -> None:
    """A second row of the network is weighed by `true_cfg_scale`; both are told of the same guidance."""
    given = {**asked, "negative_prompt": [asked["negative_prompt"]] * 2} if asked["negative_prompt"] == "" else asked
    given |= {"negative_prompt_2": [asked["negative_prompt_2"]] * 2} if "negative_prompt_2" in asked else {}
    ours = ours_of(flux[name])(**{**ASKED, **asked}, seed=SEEDS, height=height, width=width)
    close(ours.latents, expected(flux[name], "FluxPipeline", height, width, **given))


def test_a_scale_without_a_negative_prompt_is_said(flux: Saved) -> None:
    with pytest.warns(LdmrtWarning, match="true_cfg_scale has no effect without negative_prompt"):
        ours_of(flux["dev"])("two pears", true_cfg_scale=3.0, num_inference_steps=1, height=64, width=64)


@pytest.mark.parametrize("asked", [{"true_cfg_scale": 4.0}, {"negative_prompt": "a lemon"}, {"true_cfg_scale": 1.0}])
def test_one_row_without_a_negative_prompt_or_its_scale(asked: dict[str, Any], flux: Saved) -> None:
    """It is the row that there was: the bits of the latents are the same."""
    pipeline = ours_of(flux["dev"])
    request = Request("two pears", num_inference_steps=3, height=64, width=64)
    pipeline_of_one = replace(pipeline, stage=replace(pipeline.stage, guide=Guide((Row("positive"),), ())))
    assert pipeline.guidance_rows(replace(request, **asked)) == pipeline.stage.guide.rows_by_default == 1
    assert (pipeline.generate(replace(request, **asked)).latents == pipeline_of_one.generate(request).latents).all()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80)])
def test_bundle_draws_what_diffusers_draws(height: int, width: int, flux_bundle: Path, flux: Saved) -> None:
    with open_pipeline(flux_bundle) as pipeline:
        for asked in ({}, {"negative_prompt": ["two oranges", "a lemon"], "true_cfg_scale": 4.0}):
            ours = pipeline(**ASKED, **asked, seed=SEEDS, height=height, width=width)
            close(ours.latents, expected(flux["dev"], "FluxPipeline", height, width, **asked))
        names = [spec.name for spec in pipeline.engines["transformer"].inputs]
    assert names == ["hidden_states", "timestep", "encoder_hidden_states", "pooled_projections", "guidance"]
    assert (pipeline.stage.space.unit, pipeline.stage.trailing, pipeline.stage.own) == (16, True, (1024, 1024))


def test_embeddings_stand_for_prompts(flux: Saved) -> None:
    """They are those of diffusers' `encode_prompt`."""
    reference, ours = theirs(flux["dev"], "FluxPipeline"), ours_of(flux["dev"])
    with torch.no_grad():
        prompt, pooled, _ = reference.encode_prompt(PROMPTS, None)
    asked = {"seed": SEEDS, "num_inference_steps": 3, "height": 64, "width": 64}
    found = ours(prompt_embeds=prompt.numpy(), pooled_prompt_embeds=pooled.numpy(), **asked)
    close(found.latents, ours(PROMPTS, **asked).latents)


def test_embeddings_stand_for_negative_prompts(flux: Saved) -> None:
    reference, ours = theirs(flux["dev"], "FluxPipeline"), ours_of(flux["dev"])
    with torch.no_grad():
        negative, pooled, _ = reference.encode_prompt(["two oranges", "a lemon"], None)
    asked = {"seed": SEEDS, "num_inference_steps": 3, "height": 64, "width": 64, "true_cfg_scale": 4.0}
    arrays = {"negative_prompt_embeds": negative.numpy(), "negative_pooled_prompt_embeds": pooled.numpy()}
    found = ours(PROMPTS, **arrays, **asked)
    close(found.latents, ours(PROMPTS, negative_prompt=["two oranges", "a lemon"], **asked).latents)


def test_a_prompt_fits_512_tokens(flux: Saved) -> None:
    """T5 reads more of a prompt than CLIP; a text that is longer is cut, and the warning says where."""
    words = " ".join(["pear"] * 200)
    with pytest.warns(UserWarning, match="prompt has .* tokens, .* fit"):
        latents = ours_of(flux["dev"])(words, num_inference_steps=1, height=64, width=64).latents
    assert np.isfinite(latents).all()


def test_t5_reads_as_many_tokens_as_are_asked_for(flux: Saved) -> None:
    """schnell was trained on 256; a prompt that is longer is cut."""
    drawn = torch_pipeline(load(flux["schnell"], max_sequence_length=77))
    asked = {"prompt": [" ".join(["a red pear"] * 60), "two pears"], "num_inference_steps": 2}
    with pytest.warns(UserWarning, match=r"prompt has .* tokens, 76 fit"):
        ours = drawn(**asked, seed=SEEDS, height=64, width=64)
    close(ours.latents, expected(flux["schnell"], "FluxPipeline", 64, 64, **asked, max_sequence_length=77))


@pytest.mark.parametrize(
    ("name", "asked", "problem"),
    [
        ("dev", {"height": 72}, "invalid height; expected a multiple of 16"),
        ("dev", {"prompt_3": "pears"}, "this model takes no prompt_3"),
        ("dev", {"clip_skip": 1}, "this model takes no clip_skip"),
        ("dev", {"deep_cache": 2}, "this model has no U-Net"),
        ("fill", {}, "this model fills a part of an image"),
        ("canny", {}, "this model is given an image"),
        ("kontext", {}, "this model is given an image"),
        ("kontext", {"image": picture(), "mask_image": mask()}, "this model takes no mask_image"),
        ("canny", {"image": picture(), "mask_image": mask()}, "this model takes no mask_image"),
        ("canny", {"image": picture(), "true_cfg_scale": 4}, "this model takes no true_cfg_scale"),
        ("dev", {"negative_prompt_embeds": np.ones((1, 4, 64)), "true_cfg_scale": 4}, "embeddings without pooled ones"),
    ],
)
def test_refuses(name: str, asked: dict[str, Any], problem: str, flux: Saved) -> None:
    with pytest.raises(LdmrtError, match=problem):
        ours_of(flux[name])("two pears", **{"height": 64, "width": 64, "num_inference_steps": 2, **asked})


@pytest.mark.slow(minutes=0.07)
def test_a_graph_for_short_texts_is_of_its_checkpoint(flux_checkpoint: Path, tmp_path: Path) -> None:
    """It holds what T5 makes of its relative positions' weight, of which some rows are not read."""
    part = components(load(flux_checkpoint, max_sequence_length=20))["text_encoder_2"]
    path = to_onnx(part, tmp_path)
    assert list(other_graph(part, path)) == []
    weight = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    with torch.no_grad():
        part.module.get_parameter(f"model.{weight}")[0] += 1
    assert list(other_graph(part, path)) == [f"text_encoder_2: {weight} differs from the checkpoint's"]


def test_rotary_positions_are_exact() -> None:
    """All positions of an axis, against diffusers' in float64: both are within half a unit of float32's last place."""
    ids = torch.arange(4096)[:, None].expand(-1, 3)
    for found, wanted in zip(RotaryPositions((16, 56, 56))(ids), FluxPosEmbed(10000, [16, 56, 56])(ids), strict=True):
        assert (found - wanted).abs().max() <= 2**-23


def test_positions_and_patches_are_diffusers() -> None:
    from diffusers import FluxPipeline

    x = torch.randn(2, 5, 6, 8)
    tokens = FluxPipeline._pack_latents(x, 2, 5, 6, 8)
    assert (Pack()(x) == tokens).all()
    assert (Unpack()(tokens, x) == x).all()
    image = FluxPipeline._prepare_latent_image_ids(1, 3, 4, "cpu", torch.float32)
    assert (Positions()(torch.zeros(2, 7, 8), x) == torch.cat([torch.zeros(7, 3), image])).all()


def test_half_precision_keeps_the_time(flux: Saved) -> None:
    """diffusers rounds timestep / 1000 to bfloat16, an error of up to 2; here it is exact."""
    model = load(flux["dev"], dtype=torch.bfloat16)
    heard: list[torch.Tensor] = []
    model.denoiser.time_text_embed.time_proj.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    torch_pipeline(model)("two pears", num_inference_steps=3, height=64, width=64)
    plan = ours_of(flux["dev"]).plan(Request("two pears", num_inference_steps=3, height=64, width=64))
    times, scales = heard[::2], heard[1::2]
    assert [float(time[0]) for time in times] == pytest.approx(plan.t, rel=2**-23)  # of float32
    assert {float(scale[0]) for scale in scales} == {3500.0}
