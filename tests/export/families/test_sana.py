"""Sana draws what diffusers' pipeline draws, from PyTorch's networks and from a bundle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ldmrt.export.components.table import components, example
from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.runtime import LdmrtError
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.samplers.noise import FIRST, noise
from ldmrt.runtime.samplers.registry import SCHEDULERS, find_scheduler
from ldmrt.runtime.tensors import Engine

from ...support.families.compared import Saved, close, ours_of, theirs
from ...support.families.sana import SANA, save_sana
from ..test_tasks import picture

# Capitals and spaces, which the pipelines drop; texts of other lengths, whose padding is masked.
PROMPTS, SEEDS, STEPS = [" A red Apple, noto style", "two pears", "a penguin"], [3, 4, 9], 5
TENTH = 2e-5  # of the largest value: float32's sums alone, as in the certificate of a component
SIZES = [(32, 32), (20, 36), (28, 64)]  # the last two have an odd number of latents along a side, or along both
KIND = "SanaPipeline"
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:.* it has no parity certificate"),
    pytest.mark.filterwarnings("ignore:request. .*is far from the model's own size"),
]


@pytest.fixture(scope="module")
def places(sana_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The folders of the checkpoints, each saved when it is first asked for."""
    return Saved(save_sana, tmp_path_factory.mktemp("sana"), sana=sana_checkpoint)


def reference(folder: Path, scheduler: str | None = None) -> Any:
    """Return diffusers' own pipeline, with another scheduler; it takes sides of 32, as of a larger autoencoder."""
    import diffusers

    pipeline = theirs(folder, KIND)
    if scheduler is not None:
        changes = find_scheduler({}, scheduler)[1]
        own = getattr(diffusers, SCHEDULERS[scheduler].class_name).from_config(pipeline.scheduler.config, **changes)
        pipeline = type(pipeline)(**{**pipeline.components, "scheduler": own})
        pipeline.set_progress_bar_config(disable=True)
    pipeline.check_inputs = lambda *_: None
    return pipeline


def expected(
    folder: Path, height: int, width: int, *, count: int = 2, output_type: str = "latent",
    scheduler: str | None = None, **asked: Any,
) -> NDArray[np.float32]:  # fmt: skip
    """Return what diffusers' own pipeline draws, from our noise."""
    x = noise(SEEDS[:count], FIRST, (4, height // 4, width // 4))
    given = {"prompt": PROMPTS[:count], "num_inference_steps": STEPS, **asked, "latents": torch.from_numpy(x)}
    if "negative_prompt" in given:
        given["negative_prompt"] = [given["negative_prompt"]] * count
    pipeline = reference(folder, scheduler)
    images = pipeline(**given, height=height, width=width, output_type=output_type, use_resolution_binning=False).images
    return np.asarray(images)


ASKED: list[dict[str, Any]] = [
    {},  # guidance 4.5
    {"guidance_scale": 1.0, "count": 1},
    {"scheduler": "unipc", "negative_prompt": "Blurred", "num_inference_steps": 4, "count": 3},
]


def drawn(pipeline: Pipeline, height: int, width: int, *, count: int = 2, **asked: Any) -> Any:
    return pipeline(
        PROMPTS[:count], seed=SEEDS[:count], height=height, width=width, **{"num_inference_steps": STEPS, **asked}
    )


@pytest.mark.parametrize("asked", ASKED, ids=["guided", "plain", "negative prompt"])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("name", SANA)
def test_draws_what_diffusers_draws(name: str, height: int, width: int, asked: dict[str, Any], places: Saved) -> None:
    ours = drawn(ours_of(places[name]), height, width, **asked)
    close(ours.latents, expected(places[name], height, width, **asked))


@pytest.mark.parametrize("name", SANA)
def test_images_are_diffusers(name: str, places: Saved) -> None:
    ours = np.asarray(drawn(ours_of(places[name]), 20, 36, output_type="np", count=3).images)
    found = expected(places[name], 20, 36, output_type="np", count=3)
    assert ours.shape == (3, 20, 36, 3)
    assert -10 * np.log10(np.mean((ours - found) ** 2) + 1e-12) >= 60


@pytest.mark.slow(minutes=0.5)
@pytest.mark.parametrize(("height", "width"), SIZES[1:])
def test_bundle_draws_what_diffusers_draws(height: int, width: int, sana_bundle: Path, places: Saved) -> None:
    with open_pipeline(sana_bundle) as pipeline:
        for asked in ASKED:
            ours = drawn(pipeline, height, width, **asked)
            close(ours.latents, expected(places["sana"], height, width, **asked))
        names = [spec.name for spec in pipeline.engines["transformer"].inputs]
    assert names == ["hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask"]
    assert (pipeline.stage.space.unit, pipeline.stage.own, pipeline.stage.largest) == (4, (32, 32), 0)


Called = Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]
CALLED: dict[str, Called] = {
    "text_encoder": lambda pipeline, given: pipeline.text_encoder(
        **given, attention_mask=(given["input_ids"] != pipeline.tokenizer.pad_token_id).long()
    )[0],
    "transformer": lambda pipeline, given: pipeline.transformer(
        **{**given, "timestep": given["timestep"] * pipeline.transformer.config.timestep_scale}, return_dict=False
    )[0][:, :4],
    "vae_decoder": lambda pipeline, given: pipeline.vae.decode(given["latent_sample"]).sample,
    "vae_encoder": lambda pipeline, given: pipeline.vae.encode(given["sample"]).latent,
}


def _compare(folder: Path, engines: Callable[[str], Engine]) -> None:
    """Compare every component with diffusers' own network, at two batches and two odd sizes.

    The last size has fewer pixels in a level than a head of the autoencoder has features.
    """
    pipeline, parts = theirs(folder, KIND), components(load(folder))
    assert parts.keys() == CALLED.keys()
    for component, part in parts.items():
        engine = engines(component)
        for batch, height, width in ((1, 20, 36), (3, 28, 12), (1, 8, 12)):
            given = example(part, {"batch": batch, "height": height, "width": width, "timesteps": batch})
            with torch.no_grad():
                wanted = CALLED[component](pipeline, {key: torch.from_numpy(one) for key, one in given.items()}).numpy()
            found = next(iter(engine(**given).values()))
            if component == "text_encoder" and part.config["sliding_window"] < found.shape[1]:
                found, wanted = (one[given["input_ids"] != part.pad] for one in (found, wanted))  # see `CausalMask`
            assert np.abs(found - wanted).max() <= TENTH * np.abs(wanted).max(), component


@pytest.mark.parametrize("name", SANA)
def test_each_component_is_diffusers(name: str, places: Saved) -> None:
    _compare(places[name], lambda part: ours_of(places[name]).engines[part])


@pytest.mark.slow(minutes=0.5)
def test_each_component_of_a_bundle_is_diffusers(sana_bundle: Path, places: Saved) -> None:
    with open_pipeline(sana_bundle) as pipeline:
        _compare(places["sana"], lambda part: pipeline.engines[part])
