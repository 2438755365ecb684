"""Drawing with LoRAs at run time: as diffusers and the merged checkpoint do, whatever came before."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ldmrt.runtime
from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.model.lora.merge import merge, read_lora
from ldmrt.runtime import Pipeline
from ldmrt.runtime.tensors import Array

from ....support.families.compared import close
from ....support.loras import pipeline as diffusers_pipeline
from .conftest import ASKED

BOTH = {"attention": 0.8, "every": -0.5}
# Of the largest latent: ONNX Runtime and PyTorch sum in another order, through 3 rows with guidance (measured: 2e-6)
TWIN = 1e-5


def draw(opened: Pipeline, **more: Any) -> Array:
    latents: Array = opened(**{**ASKED, **more}).latents
    return latents


@pytest.mark.parametrize("weights", [{"attention": 0.8}, {"every": 0.5}, BOTH], ids=str)
def test_it_draws_as_the_merged_checkpoint(
    weights: dict[str, float], opened: Pipeline, checkpoint: Path, every: Path, attention: Path
) -> None:
    merged = load(checkpoint)
    files = {"attention": attention, "every": every}
    merge(merged.networks, [(read_lora(files[name]), weight) for name, weight in weights.items()])
    expected = draw(torch_pipeline(merged))
    found = draw(opened, loras=weights)
    assert np.abs(found - draw(opened)).max() > 0.05 * np.abs(expected).max()
    assert np.abs(found - expected).max() <= TWIN * np.abs(expected).max()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers
@pytest.mark.filterwarnings("ignore:.*Already found a `peft_config` attribute.*:UserWarning")
def test_it_draws_as_diffusers(opened: Pipeline, checkpoint: Path, every: Path, attention: Path) -> None:
    theirs = diffusers_pipeline(checkpoint)
    theirs.set_progress_bar_config(disable=True)
    for path in (attention, every):
        theirs.load_lora_weights(path.parent, weight_name=path.name, adapter_name=path.stem)
    theirs.set_adapters(list(BOTH), list(BOTH.values()))
    latents = np.random.default_rng(3).standard_normal((1, 4, 8, 8), dtype=np.float32)
    expected = theirs(
        ASKED["prompt"], num_inference_steps=4, guidance_scale=4.0, height=16, width=16,
        latents=torch.from_numpy(latents), output_type="latent",
    ).images.numpy()  # fmt: skip
    opened.set_loras(BOTH)
    try:
        found = draw(opened, num_inference_steps=4, latents=latents)
    finally:
        opened.set_loras({})
    close(found, expected)


def test_a_set_gives_the_same_bytes_whatever_came_before(bundle: Path, opened: Pipeline) -> None:
    with ldmrt.runtime.open(bundle, check=False) as untouched:
        plain = draw(untouched)
    first = draw(opened, loras={"attention": 1})
    other = draw(opened, loras={"every": 1})
    assert draw(opened, loras={"attention": 1}).tobytes() == first.tobytes()
    assert draw(opened).tobytes() == plain.tobytes()
    assert draw(opened, loras={"attention": 0.5, "every": 0.25}).tobytes() not in (first.tobytes(), other.tobytes())
    assert draw(opened, loras={"every": 1}).tobytes() == other.tobytes()
    assert draw(opened, loras={"attention": 1}).tobytes() == first.tobytes()  # after more sets than are kept
    assert draw(opened, loras={"attention": 0, "every": 0}).tobytes() == plain.tobytes()


def test_a_set_is_the_same_in_any_order(opened: Pipeline) -> None:
    expected = draw(opened, loras=BOTH).tobytes()
    assert draw(opened, loras=dict(reversed(BOTH.items()))).tobytes() == expected
    tags = "<lora:every:-0.5>two pears<lora:attention:0.8>"
    assert draw(opened, prompt=tags, prompt_syntax="a1111").tobytes() == expected


def test_sets_open_no_session_of_their_own(opened: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(opened, loras={"attention": 0.1})
    monkeypatch.setattr("ldmrt.runtime.pipeline.loras.changed_networks.open_replaceable", None)  # calling it would fail
    for weight in (0.2, 0.3, 0.4):
        draw(opened, loras={"attention": weight})


def test_requests_with_different_sets_run_side_by_side(opened: Pipeline) -> None:
    sets: list[dict[str, float]] = [{}, {"attention": 0.7}, {"every": 0.3}, BOTH]
    alone = [draw(opened, loras=weights).tobytes() for weights in sets]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda weights: draw(opened, loras=weights).tobytes(), sets * 2))
    assert together == alone * 2


def test_several_requests_overlap(opened: Pipeline) -> None:
    requests = [ldmrt.runtime.Request(**ASKED, loras=weights) for weights in ({"every": 0.4}, {}, BOTH)]
    drawn = [result.latents.tobytes() for result in opened.draw(requests)]
    assert drawn == [opened.generate(request).latents.tobytes() for request in requests]


def test_a_prompt_names_its_loras(opened: Pipeline) -> None:
    expected = draw(opened, loras={"attention": 0.5, "every": 1.0}, prompt_syntax="a1111").tobytes()
    found = draw(opened, prompt="two <lora:attention:0.5>pears<lyco:every>", prompt_syntax="a1111")
    assert found.tobytes() == expected
    replaced = {"attention": 0.9, "every": 1.0}
    found = draw(opened, prompt="two pears<lora:attention:0.5>", prompt_syntax="a1111", loras=replaced)
    assert found.tobytes() == expected
    twice = "<lora:attention:0.25>two pears<lora:attention:0.25><lora:every:1>"
    assert draw(opened, prompt=twice, prompt_syntax="a1111").tobytes() == expected
    plain = draw(opened, prompt="two <lora:attention:0.5>pears")  # plain text is read as it is
    assert plain.tobytes() not in (expected, draw(opened).tobytes())


def test_a_lora_is_unloaded_and_loaded_again(bundle: Path, attention: Path) -> None:
    with ldmrt.runtime.open(bundle, check=False) as pipeline:
        plain = draw(pipeline).tobytes()
        assert pipeline.load_lora(attention, "style") == "style"
        pipeline.set_loras({"style": 0.8})
        styled = draw(pipeline).tobytes()
        assert draw(pipeline, loras={}).tobytes() == plain != styled
        pipeline.unload_lora("style")
        assert draw(pipeline).tobytes() == plain
        pipeline.load_lora(attention, "style")
        pipeline.unload()
        assert draw(pipeline, loras={"style": 0.8}).tobytes() == styled
