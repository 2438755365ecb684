"""`ldmrt evaluate`: which measures go together, of which images, and what they refuse."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.model.training.data.captioned import ImageFolder
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.tools.commands.training.evaluate import held_out, measured
from ldmrt.tools.commands.training.scores.network import check_network, network_scores

from ....support.emoji_packages import sprite_set
from ....support.pipelines import save_pipeline

FLOW = {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def test_measures_are_combined(ldmrt: Any, bundle: Path, pictures: Path) -> None:
    words = ("evaluate", bundle, "--data", pictures, "--prompts", 2, "--steps", 1, "--guidance", 1)
    ran = ldmrt(*words, "--measure", "memorisation", "--measure", "loss", "--json")
    assert ran.code == 0, ran.err
    scores = json.loads(ran.out)
    assert scores.keys() == {"images", "reference images", "memorisation", "lowest ratio", "loss"}
    alone = ldmrt("evaluate", bundle, "--data", pictures, "--prompts", 2, "--measure", "loss", "--json")
    assert json.loads(alone.out)["loss"] == scores["loss"]


def test_stages_of_a_cascade_have_images_of_their_size(
    checkpoint: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is the first stage's, and drawn images are the last one's."""
    base = torch_pipeline(load(checkpoint))
    later = replace(base, stage=replace(base.stage, own=(32, 32), name="upscale"))
    sizes = list[int]()

    def opened(size: int) -> ImageFolder:
        sizes.append(size)
        return ImageFolder.open(pictures, size=size)

    seen = "ldmrt.tools.commands.training.scores.samples.sample_scores"
    monkeypatch.setattr(seen, lambda pipeline, data, *_, **__: {"size": data.size})
    for measures, expected, drawn in (
        (["loss"], [16], {}),
        (["clip"], [16], {"size": 16}),
        (["memorisation", "loss"], [32, 16], {"size": 32}),
    ):
        sizes.clear()
        how: dict[str, Any] = {"extract": None, "clip": None, "sheet": None, "seed": 0}
        scores, network = measured(replace(base, later=(later,)), opened, 3, measures, **how)
        assert (sizes, scores) == (expected, drawn)
        assert (network.loss is not None) == ("loss" in measures)


def test_images_that_a_training_held_out(ldmrt: Any, bundle: Path, pictures: Path) -> None:
    from ldmrt.model.training.validation import split

    words = ("evaluate", bundle, "--data", pictures, "--measure", "loss", "--json")
    images = ImageFolder.open(pictures, size=16)
    share = sorted(images.fraction(row.file_name) for row in images.rows)[1]  # which is below it for one of the three
    held = split(images, share)[1]
    assert len(held) == 1
    ran = ldmrt(*words, "--validation", share)
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)["loss"]
    assert found["images"] == 1
    alone = network_scores(open_pipeline(bundle), held, 1, ["loss"]).loss
    assert alone is not None
    assert found["simple"] == alone.simple[0].double().tolist()
    assert "--validation 1e-09 leaves no image for the validation" in ldmrt(*words, "--validation", 1e-9).error


def test_emoji_are_those_that_were_held_out(checkpoint: Path, tmp_path: Path) -> None:
    data = held_out(sprite_set(tmp_path), "noto", (), 64)
    assert data.subset == "held-out"
    pipeline = torch_pipeline(load(checkpoint))
    pipeline = replace(pipeline, stage=replace(pipeline.stage, own=(64, 64)))
    found = network_scores(pipeline, data, 2, ["loss"]).loss
    assert found is not None
    assert found.simple.isfinite().all()
    with pytest.raises(LdmrtError, match="unsupported size of emoji images; expected a model of size 64; found 16"):
        held_out(tmp_path, "noto", (), 16)


def test_what_cannot_be_measured_is_refused(
    ldmrt: Any, bundle: Path, checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    for more, message in (
        (("--measure", "loss", "--steps", 3), "--steps has no effect on loss, which draws no image"),
        (("--measure", "loss", "--features", "x.pt"), "--features has no effect on loss"),
        (("--measure", "bound", "--measure", "loss", "--guidance", 2), "--guidance has no effect on bound, loss"),
        (("--measure", "bound", "--prompts", 1), "too few images for this score; expected at least 2; found 1"),
    ):
        assert message in ldmrt("evaluate", bundle, "--data", pictures, *more).error
    sprites = sprite_set(tmp_path)
    assert "--validation has no effect without captioned images in --data" in (
        ldmrt("evaluate", bundle, "--data", sprites, "--measure", "loss", "--validation", 0.5).error
    )
    assert "--measure fid has no effect without captioned images in --data; expected clip, loss, bound" in (
        ldmrt("evaluate", bundle, "--data", sprites, "--measure", "fid").error
    )
    assert "unsupported size of emoji images" in (
        ldmrt("evaluate", bundle, "--data", sprites, "--measure", "loss").error
    )
    pipeline = torch_pipeline(load(checkpoint))
    for changed, message in (
        (replace(pipeline, scheduler={"_class_name": "EDMEulerScheduler"}), "is not one of betas"),
        (replace(pipeline, engines=LazyEngines({})), "this bundle has no encoder"),
        (torch_pipeline(load(save_pipeline("sd15-inpainting", tmp_path / "inpaint"))), "fills a part of an image"),
        (torch_pipeline(load(save_pipeline("ddim-grey", tmp_path / "grey"))), "are not in colour"),
        (replace(pipeline, scheduler={**pipeline.scheduler, "variance_type": "learned"}), "unsupported variance"),
        (replace(pipeline, scheduler=FLOW), "unsupported prediction_type"),
    ):
        with pytest.raises(LdmrtError, match=message):
            check_network(changed, ["loss", "bound"])
