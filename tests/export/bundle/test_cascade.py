"""A cascade: a model of prompts, then one or two that enlarge its images, as one pipeline and as one bundle."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.runtime import LdmrtError, Pipeline, RefinedPipeline, Request
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.pipeline.conditioning.sources import check_sources
from ldmrt.runtime.pipeline.request.stages import next_request
from ldmrt.runtime.samplers.noise.counter import FIRST, IMAGE, MASKED, NOISED, STAGE, noise, of_stage
from ldmrt.tools.cli import cli

from ...conftest import sharing
from ...support.damage.bundle_faults import Plant, config, truthful, weight
from ...support.pipelines import save_pipeline
from .test_conditioned_bundles import ldmrt

NAMES = ["sd15", "upscaler", "super-resolution"]  # 16 pixels, times 4 with text, times 4 without
BY_STAGE: dict[str, dict[str, Any]] = {"large": {"num_inference_steps": 3, "guidance_scale": 1.0}, "huge": {"eta": 1.0}}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("cascade")
    return [save_pipeline(name, root / name) for name in NAMES]


@pytest.fixture(scope="module")
def alone(places: list[Path]) -> list[Pipeline]:
    """Each stage as a pipeline of its own, that knows its place."""
    pipelines = [torch_pipeline(load(place)) for place in places]
    names = ["base", "large", "huge"]
    return [
        replace(pipeline, stage=replace(pipeline.stage, name=name, number=number))
        for number, (name, pipeline) in enumerate(zip(names, pipelines, strict=True))
    ]


@pytest.fixture(scope="module")
def cascade(alone: list[Pipeline]) -> Pipeline:
    return replace(alone[0], later=tuple(alone[1:]))


ASKED: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 4.0, "negative_prompt": "blurred", "seed": 5}


def by_hand(alone: list[Pipeline], prompts: list[str], seeds: list[int]) -> list[np.ndarray]:
    """The slow obvious way: one pipeline after the other, image by image."""
    asked = {**ASKED, "seed": seeds}
    small = alone[0](prompts, **asked).pixels
    large = alone[1](prompts, image=list(small), **{**asked, **BY_STAGE["large"]}).pixels
    asked.pop("negative_prompt")
    return [small, large, alone[2](image=list(large), **{**asked, **BY_STAGE["huge"]}).pixels]


def test_stages_are_run_one_after_another(alone: list[Pipeline], cascade: Pipeline) -> None:
    expected = by_hand(alone, ["a pear", "two apples"], [5, 6])
    for until, images in zip(("base", "large", None), expected, strict=True):
        result = cascade(["a pear", "two apples"], stages=BY_STAGE, until_stage=until, **ASKED)
        assert np.array_equal(result.pixels, images)
        assert result.seeds == [5, 6]
    assert [images.shape[1] for images in expected] == [16, 64, 256]


def test_a_request_begins_at_any_stage(alone: list[Pipeline], cascade: Pipeline) -> None:
    small, large, _ = by_hand(alone, ["a pear"], [5])
    asked: dict[str, Any] = {**ASKED, "stages": BY_STAGE, "until_stage": "large"}
    assert np.array_equal(cascade("a pear", image=small[0], from_stage="large", **asked).pixels, large)
    wordless = cascade(image=large[0], from_stage="huge", num_inference_steps=2, seed=5, stages=BY_STAGE)
    assert wordless.pixels.shape == (1, 256, 256, 3)


def test_several_images_of_a_prompt(alone: list[Pipeline], cascade: Pipeline) -> None:
    expected = by_hand(alone, ["a pear"] * 3, [5, 6, 7])[1]
    asked: dict[str, Any] = {**ASKED, "stages": BY_STAGE, "until_stage": "large", "num_images_per_prompt": 3}
    assert np.array_equal(cascade("a pear", **asked).pixels, expected)
    parts = list(cascade.draw(cascade.parts(Request("a pear", **asked), 2)))
    assert [len(part.pixels) for part in parts] == [2, 1]
    # Batches of other sizes are other kernels of PyTorch: float32's rounding, to a level or two after two stages.
    assert np.abs(np.concatenate([part.pixels for part in parts]).astype(int) - expected).max() <= 2


def test_rows_come_from_all_stages(cascade: Pipeline) -> None:
    request = Request("a pear", **ASKED, stages=BY_STAGE)
    states = list(cascade.steps(request))
    assert [state.stage for state in states] == ["base"] * 3 + ["large"] * 3 + ["huge"] * 2  # PNDM has one row more
    assert [state.row for state in states] == list(range(8))
    assert {state.rows for state in states} == {8} == {cascade.rows(request)}
    result = cascade.generate(request)
    assert np.array_equal(states[-1].x, result.latents)
    assert np.array_equal(cascade.decode(states[-1].x, "huge"), result.pixels)
    assert cascade.decode(states[0].x, "base").shape == (1, 16, 16, 3)


def test_stages_draw_noises_of_their_own() -> None:
    streams = [of_stage(stream, stage) for stage in range(3) for stream in (FIRST, 1, 1000, IMAGE, MASKED, NOISED)]
    assert len({*streams}) == len(streams)
    assert streams[:6] == [FIRST, 1, 1000, IMAGE, MASKED, NOISED]  # those that images of one stage always had
    assert max(streams) < 2**64
    first, second = (noise([3], of_stage(FIRST, stage), (4, 8, 8)) for stage in (0, 1))
    assert np.abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.2  # 256 pairs: 3 standard errors
    assert STAGE > 10**6 * 3  # rows of any request


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"until_stage": "larg"}, "unknown stage 'larg', did you mean 'large'.*expected base, large, huge"),
        ({"from_stage": "none"}, "unknown stage 'none'"),
        ({"stages": {"upscale": {"num_inference_steps": 3}}}, "unknown stage 'upscale'"),
        ({"from_stage": "huge", "until_stage": "base"}, "from_stage huge comes after until_stage base"),
        ({"from_stage": "large"}, "this model is given an image; expected image"),
        ({"stages": {"large": {"num_inference_steps": 0}}}, "invalid num_inference_steps; expected at least 1"),
        ({"stages": {"large": {"width": 64}}}, "invalid stages 'large'; expected some of num_inference_steps"),
        ({"stages": {"huge": {"eta": 2}}}, "invalid eta; expected 0 to 1; found 2"),
        ({"stages": {"huge": {"scheduler": "none"}}}, "unknown scheduler 'none'"),
        ({"stages": {"large": 3}}, "invalid stages; expected fields by the name of a stage"),
        ({"noise_level": 400}, "invalid noise_level; expected 0 to 350; found 400"),
        ({"class_labels": 1}, "this model takes no class_labels"),
    ],
)
def test_what_no_stage_takes(asked: dict[str, Any], words: str, cascade: Pipeline) -> None:
    with pytest.raises(LdmrtError, match=words):
        cascade("a pear", **{**ASKED, **asked})


def test_what_another_stage_takes_is_not_asked_of_the_first(
    alone: list[Pipeline], cascade: Pipeline, tmp_path: Path
) -> None:
    """A noise level that no stage of the request uses; a prompt that the first stage does not read."""
    small = alone[0]("a pear", **ASKED).pixels
    assert np.array_equal(cascade("a pear", until_stage="base", noise_level=4, **ASKED).pixels, small)
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    told = cascade("a pear", from_stage="huge", image=image, num_inference_steps=2, seed=5, eta=1.0).pixels
    assert np.array_equal(told, alone[2](image=image, num_inference_steps=2, seed=5, eta=1.0).pixels)
    pair = [image, image[::-1].copy()]
    asked: dict[str, Any] = {"num_inference_steps": 2, "seed": 5, "eta": 1.0, "image": pair}
    assert np.array_equal(cascade(["a pear", "a cat"], from_stage="huge", **asked).pixels, alone[2](**asked).pixels)
    first = torch_pipeline(load(save_pipeline("ddpm", tmp_path / "ddpm")))
    mixed = replace(first, later=(alone[1],))
    asked = {"num_inference_steps": 2, "seed": 5, "num_images_per_prompt": 2}
    found = mixed(["a pear", "a cat"], **asked).pixels
    begun = first(num_images_per_prompt=4, num_inference_steps=2, seed=5).pixels
    expected = alone[1](["a pear"] * 2 + ["a cat"] * 2, image=list(begun), num_inference_steps=2, seed=5).pixels
    assert np.array_equal(found, expected)


def test_what_a_later_stage_refuses_is_refused_before_the_first_runs(
    cascade: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "_generate_in_parts", lambda *_: pytest.fail("a stage ran"))
    with pytest.raises(LdmrtError, match="unknown scheduler 'none'"):
        cascade("a pear", stages={"huge": {"scheduler": "none"}}, **ASKED)
    embedded = {"prompt_embeds": np.zeros((1, 16, 24), np.float32), "guidance_scale": 1.0, "num_inference_steps": 2}
    with pytest.raises(LdmrtError, match="no prompt"):
        cascade(**embedded)


def test_the_first_stages_own_guidance_is_not_asked_of_later_ones(alone: list[Pipeline]) -> None:
    own = {"true_cfg_scale": 3.0, "skip_guidance_layers": [1], "skip_layer_guidance_stop": 0.5}
    later = next_request(Request("a pear", **own), alone[1].stage, ends=True)
    assert [getattr(later, name) for name in own] == [1.0, None, 0.2]
    check_sources(later, alone[1].stage)


def test_latents_are_those_of_the_last_stage(cascade: Pipeline) -> None:
    result = cascade("a pear", **ASKED)
    assert np.array_equal(cascade.decode(result.latents), result.pixels)
    with pytest.raises(LdmrtError, match="unknown stage 'larg'; expected base, large, huge"):
        cascade.decode(result.latents, "larg")


def test_one_stage_has_a_name_too(alone: list[Pipeline]) -> None:
    expected = alone[0]("a pear", **ASKED).pixels
    stages = {"base": {"num_inference_steps": 2}}
    asked = {**ASKED, "num_inference_steps": 9}
    found = alone[0]("a pear", from_stage="base", until_stage="base", stages=stages, **asked)
    assert np.array_equal(found.pixels, expected)
    with pytest.raises(LdmrtError, match="unknown stage 'large'; expected base"):
        alone[0]("a pear", until_stage="large", **ASKED)


def test_no_refiner_with_a_cascade(cascade: Pipeline, alone: list[Pipeline]) -> None:
    with pytest.raises(LdmrtError, match="refiner: cannot be combined with a cascade"):
        RefinedPipeline(cascade, alone[0])


@pytest.fixture(scope="module")
def bundle(places: list[Path], tmp_path_factory: pytest.TempPathFactory, export_once: Any) -> Path:
    """A base and its upscaler as one bundle."""
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    with sharing(export_once):
        assert ldmrt("export", places[0], path) == 0
        assert ldmrt("export", places[1], path, "--stage", "large") == 0
    return path


@pytest.mark.slow(minutes=0.5)  # two bundles
def test_bundle_is_the_cascade(bundle: Path, alone: list[Pipeline]) -> None:
    expected = by_hand(alone, ["a pear"], [5])[1]
    for low_memory in (False, True):
        with open_pipeline(bundle, "onnxruntime", low_memory=low_memory) as pipeline:
            assert [each.stage.name for each in pipeline.stages] == ["base", "large"]
            found = pipeline("a pear", **ASKED, stages={"large": BY_STAGE["large"]}).pixels
        assert np.abs(found.astype(int) - expected).max() <= 2  # levels, after two stages in float32


@pytest.mark.slow(minutes=0.5)
def test_commands(bundle: Path, tmp_path: Path) -> None:
    whole, small, large = (tmp_path / f"{name}.png" for name in ("whole", "small", "large"))
    asked = ("a pear", "--seed", 5, "--steps", "base=3,large=2")
    assert ldmrt("generate", bundle, *asked, "-o", whole) == 0
    assert ldmrt("generate", bundle, *asked, "--until", "base", "-o", small) == 0
    assert ldmrt("generate", bundle, *asked, "--from", "large", "--image", small, "-o", large) == 0
    images = [np.asarray(Image.open(path)) for path in (whole, small, large)]
    assert [image.shape for image in images] == [(64, 64, 3), (16, 16, 3), (64, 64, 3)]
    assert np.array_equal(images[0], images[2])
    facts = json.loads(Image.open(whole).text["ldmrt"])
    assert (facts["steps"], facts["width"]) == ({"base": 3, "large": 2}, 64)
    assert ldmrt("upscale", bundle, small, "--steps", 2, "-o", tmp_path / "up.png") == 0
    assert ldmrt("generate", bundle, *asked, "--save-steps", "-o", tmp_path / "rows.png") == 0
    assert len(list((tmp_path / "rows-steps").glob("*.png"))) == 4 + 2  # PNDM has one row more
    for command in ("verify", "inspect", "plan"):
        assert ldmrt(command, bundle) == 0
    assert ldmrt("generate", bundle, "a pear", "--steps", "base=3,nose=2", "-o", tmp_path / "no.png") != 0
    assert not (tmp_path / "no.png").exists()


@pytest.mark.slow(minutes=0.5)
def test_base_is_exported_again_and_keeps_its_stages(bundle: Path, places: list[Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    assert ldmrt("export", places[0], copy, "--no-verify") == 0
    assert Bundle.open(copy).then == ("large",)
    assert ldmrt("export", places[1], copy, "--stage", "large", "--no-verify") == 0
    assert Bundle.open(copy).then == ("large",)
    assert Bundle.open(copy / "large").certificate is not None
    for name in ("base", "unet", "engines", "optimized", "scheduler", "../x", ""):
        assert ldmrt("export", places[1], copy, "--stage", name) != 0
    assert ldmrt("export", places[0], copy, "--stage", "second", "--no-verify") != 0  # it takes no image
    assert Bundle.open(copy).then == ("large",)


@pytest.mark.slow(minutes=0.5)
@pytest.mark.parametrize(
    ("stage", "fault", "found"),
    [
        (0, weight("unet", "conv_out.bias", np.zeros_like), "unet, guidance or conditioning"),
        (1, weight("unet", "conv_out.bias", np.zeros_like), "unet, guidance or conditioning"),
        (1, weight("vae_decoder", "decoder.conv_out.bias", np.zeros_like), "vae_decoder or decoding"),
        (1, weight("text_encoder", "final_layer_norm.bias", np.zeros_like), "text_encoder"),
        (1, config("low_res_scheduler/scheduler_config.json", beta_start=0.0003), "unet, guidance or conditioning"),
        (0, config("scheduler/scheduler_config.json", beta_end=0.013), "scheduler"),
    ],
)
def test_a_fault_is_laid_at_its_stage(stage: int, fault: Plant, found: str, bundle: Path, tmp_path: Path) -> None:
    """The stored recordings hold no call of a U-Net or a decoder alone, so these are named with what is around them."""
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    place = copy / "large" if stage else copy
    fault(place)
    truthful(place)
    assert ldmrt("verify", copy / "large") == (1 if stage else 0)
    result = CliRunner().invoke(cli, ["verify", str(copy)])
    assert result.exit_code == 1
    of_stages = result.output.split("stage large\n")
    assert [f"it began with: {found}\n" in said for said in of_stages] == [stage == 0, stage == 1]
    assert result.output.count("it began with") == 1


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(bundle: Path) -> None:
        manifest = json.loads((bundle / "ldmrt.json").read_text())
        change(manifest)
        (bundle / "ldmrt.json").write_text(json.dumps(manifest))

    return edit


@pytest.mark.slow(minutes=0.5)
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (edited(lambda m: m.update(then=["../large"])), "damaged at then"),
        (edited(lambda m: m.update(then=["large", "Large"])), "damaged at then"),
        (edited(lambda m: m.update(then=["base"])), "damaged at then"),
        (edited(lambda m: m.update(then=["unet"])), "damaged at then"),
        (edited(lambda m: m.update(then=["engines"])), "damaged at then"),
        (edited(lambda m: m.update(then="large")), "damaged at then"),
        (edited(lambda m: m.update(then=[f"s{i}" for i in range(9)])), "damaged at then"),
        (edited(lambda m: m.update(schema=2)), "damaged at then"),
        (edited(lambda m: m.pop("then")), "damaged at then"),
        (edited(lambda m: m.update(then=["other"])), "no directory"),
        (lambda bundle: shutil.rmtree(bundle / "large"), "no directory"),
        (lambda bundle: (bundle / "large" / "unet" / "model.onnx").unlink(), "missing"),
    ],
)
def test_damaged_cascades(damage: Callable[[Path], None], words: str, bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    damage(copy)
    with pytest.raises(LdmrtError, match=words):
        open_pipeline(copy, "onnxruntime")
