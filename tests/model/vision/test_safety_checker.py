"""A safety checker flags the images that diffusers' StableDiffusionSafetyChecker flags, and they become black."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

from ldmrt.export.components.table import components
from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load, with_safety_checker
from ldmrt.runtime import LdmrtError, LdmrtWarning, Pipeline
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.images.clip import clip_pixels
from ldmrt.runtime.pipeline.autoencoder.decode import Decoding
from ldmrt.runtime.pipeline.autoencoder.safety import CONCEPTS, SPECIAL, decide

from ...support.pipelines import randomise
from ...tools.conftest import command

SIZE = 30  # pixels of the checker's images
PROMPTS = ["a red apple, noto style, blue background", "two pears", "a penguin", "a yellow background"]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers


def pictures() -> list[Image.Image]:
    small = np.random.default_rng(2).integers(0, 255, (12, 4, 5, 3), np.uint8)
    return [Image.fromarray(each).resize((40, 36), Image.Resampling.BICUBIC) for each in small]


def prepared(images: list[Image.Image]) -> torch.Tensor:
    processor = transformers.CLIPImageProcessor(size=SIZE, crop_size=SIZE)
    pixels: torch.Tensor = processor(images, return_tensors="pt").pixel_values
    return pixels


def cosines(checker: Any, pixels: torch.Tensor) -> list[NDArray[Any]]:
    """Those of special concepts and of the others, by diffusers' own function."""
    with torch.no_grad():
        embeds = checker.visual_projection(checker.vision_model(pixels)[1])
        return [cosine_distance(embeds, each).numpy() for each in (checker.special_care_embeds, checker.concept_embeds)]


def set_thresholds(checker: Any, pixels: torch.Tensor) -> None:
    """Above the cosines of most images: each concept's lies between those of its second and its third."""
    weights = checker.special_care_embeds_weights, checker.concept_embeds_weights
    for found, weight, apart in zip(cosines(checker, pixels), weights, (3, 1), strict=True):
        highest = np.sort(found, axis=0)[::-1]
        limits = (highest[1] + highest[2]) / 2 if apart == 1 else (highest[0] + highest[1]) / 2
        limits[apart:] = 2.0  # few concepts decide, so that not all images are flagged
        weight.data = torch.from_numpy(limits.astype(np.float32))


@pytest.fixture(scope="module")
def theirs() -> Any:
    vision = {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": SIZE, "patch_size": 6, "projection_dim": 20,
    }  # fmt: skip
    text = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(6)
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=20)
    checker = randomise(StableDiffusionSafetyChecker(config), 7)
    for embeds in (checker.special_care_embeds, checker.concept_embeds):
        embeds.data = torch.randn(embeds.shape)
    set_thresholds(checker, prepared(pictures()))
    return checker


@pytest.fixture(scope="module")
def folder(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As checkpoints have it, with the processor beside it."""
    place = tmp_path_factory.mktemp("checked")
    theirs.save_pretrained(place / "safety_checker")
    transformers.CLIPImageProcessor(size=SIZE, crop_size=SIZE).save_pretrained(place / "feature_extractor")
    return place


def flags_of(checker: Any, pixels: torch.Tensor) -> list[bool]:
    images = np.ones((len(pixels), 2, 2, 3), np.float32)
    return [bool(flag) for flag in checker(clip_input=pixels, images=images)[1]]


@pytest.mark.parametrize("names", ["today's", "old"])
def test_scores_and_flags_are_those_of_diffusers(
    names: str, checkpoint: Path, folder: Path, theirs: Any, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(folder / "safety_checker", tmp_path / "safety_checker"))
    file = place / "model.safetensors"
    state = load_file(file)
    nested = any(key.startswith("vision_model.vision_model.") for key in state)
    if names == "old" and not nested:  # as on the hub, with what transformers saved of old
        state = {key.replace("vision_model.", "vision_model.vision_model.", 1): one for key, one in state.items()}
        state["vision_model.vision_model.embeddings.position_ids"] = torch.arange(26)[None]
        save_file(state, file, {"format": "pt"})
    engine = components(with_safety_checker(load(checkpoint), place))["safety_checker"].engine()
    pixels = prepared(pictures())
    out = engine(pixel_values=clip_pixels("image", pictures(), SIZE))
    weights = theirs.special_care_embeds_weights, theirs.concept_embeds_weights
    for name, found, weight in zip((SPECIAL, CONCEPTS), cosines(theirs, pixels), weights, strict=True):
        np.testing.assert_allclose(out[name], found - weight.numpy(), rtol=0, atol=1e-5)  # of cosines, up to 1
    flags = decide(out[SPECIAL], out[CONCEPTS])
    assert flags == flags_of(theirs, pixels)
    assert 0 < sum(flags) < len(flags)


def test_scores_are_rounded_and_raised_as_in_diffusers(theirs: Any) -> None:
    """At the edges: thousandths that round to zero, and a special concept that raises the others."""
    edges = np.array([-0.0105, -0.0104, -0.0095, -0.0094, -0.0006, -0.0005, 0.0, 0.0004, 0.0005, 0.0006], np.float32)
    concepts = np.concatenate([edges, edges])[:, None]
    special = np.repeat(np.array([[-0.2], [0.3]], np.float32), len(edges), axis=0)
    expected = []
    for care, score in zip(special[:, 0], concepts[:, 0], strict=True):  # the lines of its forward
        adjustment = 0.01 if round(care + 0.0, 3) > 0 else 0.0
        expected.append(bool(round(score + adjustment, 3) > 0))
    assert decide(special, concepts) == expected
    assert 0 < sum(expected) < len(expected)


@pytest.fixture(scope="module")
def both(checkpoint: Path, folder: Path, theirs: Any) -> tuple[Any, Pipeline]:
    """diffusers' pipeline and ours, with thresholds between the images of the prompts."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    plain = drawn(pipeline, latents(), output_type="pil").images
    set_thresholds(theirs, prepared(plain))
    theirs.save_pretrained(folder / "safety_checker")
    processor = transformers.CLIPImageProcessor(size=SIZE, crop_size=SIZE)
    parts = {**pipeline.components, "safety_checker": theirs, "feature_extractor": processor}
    checked = diffusers.StableDiffusionPipeline(**parts)
    checked.set_progress_bar_config(disable=True)
    return checked, torch_pipeline(with_safety_checker(load(checkpoint), folder))


def latents() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).standard_normal((4, 4, 8, 8), dtype=np.float32))


def drawn(pipeline: Any, start: torch.Tensor, **given: Any) -> Any:
    return pipeline(PROMPTS, num_inference_steps=4, guidance_scale=5.0, latents=start, **given)


@pytest.mark.parametrize("form", ["pil", "np"])
def test_flagged_images_become_black(form: str, both: tuple[Any, Pipeline]) -> None:
    expected = drawn(both[0], latents(), output_type=form)
    with pytest.warns(LdmrtWarning, match="of 4 images were flagged by the safety checker; they are black"):
        found = drawn(both[1], latents(), output_type=form)
    assert found.nsfw_content_detected == expected.nsfw_content_detected
    assert 0 < sum(found.nsfw_content_detected) < 4
    for image, other, flag in zip(found.images, expected.images, found.nsfw_content_detected, strict=True):
        one, two = (np.asarray(each) * (1.0 if form == "pil" else 255.0) for each in (image, other))
        assert np.abs(one - two).max() <= 1  # a rounding apart
        assert bool(one.max() == 0) is flag


def test_flags_are_reported_alone_or_not_looked_for(both: tuple[Any, Pipeline], checkpoint: Path) -> None:
    plain = drawn(torch_pipeline(load(checkpoint)), latents())
    assert plain.nsfw_content_detected is None
    with pytest.warns(LdmrtWarning, match="they are left as they are"):
        reported = drawn(replace(both[1], decoding=Decoding(safety="report")), latents())
    assert any(reported.nsfw_content_detected)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LdmrtWarning)
        off = drawn(replace(both[1], decoding=Decoding(safety="off")), latents())
        raw = drawn(both[1], latents(), output_type="latent")
    assert (off.nsfw_content_detected, raw.nsfw_content_detected) == (None, None)
    for result in (reported, off):
        np.testing.assert_array_equal(result.pixels, plain.pixels)
    with pytest.raises(LdmrtError, match=r"unknown safety mode, did you mean 'report'\?; expected on, report, off"):
        Decoding(safety="reports")


def test_a_folder_of_something_else_is_refused(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LdmrtError, match="holds no safety checker; expected StableDiffusionSafetyChecker"):
        with_safety_checker(load(checkpoint), checkpoint / "text_encoder")
    with pytest.raises(LdmrtError, match="safety_checker"):
        with_safety_checker(load(checkpoint), tmp_path)
    place = Path(shutil.copytree(folder, tmp_path / "other"))
    processor = place / "feature_extractor" / "preprocessor_config.json"
    processor.write_text(json.dumps({**json.loads(processor.read_text()), "image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(LdmrtError, match="unknown image_mean of the safety checker's images"):
        with_safety_checker(load(checkpoint), place)


@pytest.mark.slow
def test_a_bundle_carries_it(
    checkpoint: Path, folder: Path, both: Any, tmp_path: Path, export_once: Any, monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:  # fmt: skip
    monkeypatch.setattr("ldmrt.export.bundle_writer.to_onnx", export_once)
    bundle = tmp_path / "bundle"
    assert command("export", checkpoint, bundle, "--safety-checker", folder) == 0
    assert command("verify", bundle, "--backend", "onnxruntime") == 0
    assert "safety_checker" in capsys.readouterr().out
    assert command("verify", bundle, "--against", checkpoint) == 2
    assert "the bundle has a safety checker, and the checkpoint has none" in capsys.readouterr().err
    expected = drawn(both[0], latents()).nsfw_content_detected
    for how in ({}, {"low_memory": True}):
        with open_pipeline(bundle, "onnxruntime", **how) as pipeline, pytest.warns(LdmrtWarning, match="flagged"):
            assert drawn(pipeline, latents()).nsfw_content_detected == expected
    start = tmp_path / "start.npy"
    np.save(start, latents().numpy()[:1])
    words = (PROMPTS[0], "--latents", start, "--steps", 4, "--guidance", 5, "-o", tmp_path / "out.png")
    capsys.readouterr()
    for safety, black in (("on", expected[0]), ("report", False), ("off", False)):
        assert command("generate", bundle, *words, "--safety", safety, "--overwrite") == 0
        warned = capsys.readouterr().err.count("flagged by the safety checker")
        assert warned == (1 if expected[0] and safety != "off" else 0)
        assert (np.asarray(Image.open(tmp_path / "out.png")).max() == 0) == black
