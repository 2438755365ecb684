"""`ldmrt train classes`: from folders of images to a model that draws classes, exported and guided."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.model.training.tasks import presets
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.bundle.stages_json import stages_from_json

from ....support.pipelines import save_pipeline
from ...console.records.cards import check_card
from .repeated import assert_repeats


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    """Two classes in folders of their names."""
    for name, count in (("pear", 3), ("apple", 2)):
        (tmp_path / "kinds" / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 256, (18, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "kinds" / name / f"{i}.png")
    return tmp_path / "kinds"


@pytest.fixture
def words(kinds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    small = {"block_out_channels": (16, 32), "norm_num_groups": 4, "attention_head_dim": 8}
    monkeypatch.setattr(presets, "CLASSES", replace(presets.CLASSES, **small))  # type: ignore[arg-type]
    vae = save_pipeline("sd15", tmp_path / "source")
    words = ("train", "classes", "--data", kinds, "--autoencoder", vae, "--size", 16, "--batch", 2, "--warmup", 0)
    return (*words, "--learning-rate", 1e-2, "--schedule", "constant")


def test_what_it_writes_is_drawn_as_diffusers_would(ldmrt: Any, words: tuple[object, ...], tmp_path: Path) -> None:
    """Of diffusers' network and scheduler, guided by hand: it has no pipeline of such a network with guidance."""
    import diffusers

    out = tmp_path / "out"
    ran = ldmrt(*words, "--steps", 2, "--out", out)
    assert ran.code == 0, ran.err
    assert "2 classes, from 0: apple, pear" in ran.err
    assert json.loads((out / "model_index.json").read_text())["id2label"] == {"0": "apple", "1": "pear"}
    assert Image.open(out / "training" / "classes-000002.png").size == (34, 16)  # one image of each class
    check_card(out, "classes", library=None)
    made = load(out)
    assert (made.stage.classes, made.unet.config.num_class_embeds) == (2, 3)
    assert stages_from_json([made.stage.to_json()]) == (made.stage,)  # what an exported bundle has
    unet = diffusers.UNet2DModel.from_pretrained(out / "unet")
    scheduler = diffusers.DDIMScheduler.from_pretrained(out / "scheduler")
    scheduler.set_timesteps(4)
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    x, labels, null = start, torch.tensor([1, 0]), torch.tensor([2, 2])
    with torch.no_grad():
        for t in scheduler.timesteps:
            plain, told = (unet(x, t, class_labels=each).sample for each in (null, labels))
            x = scheduler.step(plain + 3.0 * (told - plain), t, x).prev_sample
    asked: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    ours = torch_pipeline(made)(class_labels=[1, 0], latents=start.numpy(), **asked).latents
    assert np.abs(ours - x.numpy()).max() <= 2e-4 * max(1.0, x.abs().max().item())  # float32, amplified by guidance
    alone = torch_pipeline(made)(class_labels=[1, 0], latents=start.numpy(), **asked | {"guidance_scale": 1.0}).latents
    assert np.abs(ours - alone).max() > 1e-3
    with pytest.raises(LdmrtError, match="invalid class_labels; expected 0 to 1; found 2"):
        torch_pipeline(made)(class_labels=2, num_inference_steps=1)


@pytest.mark.slow(minutes=1)
@pytest.mark.usefixtures("shared_exports")
def test_what_it_writes_is_exported_and_drawn(ldmrt: Any, words: tuple[object, ...], tmp_path: Path) -> None:
    out, bundle = tmp_path / "out", tmp_path / "bundle"
    assert ldmrt(*words, "--steps", 1, "--out", out).code == 0
    exported = ldmrt("export", out, bundle)
    assert exported.code == 0, exported.err
    manifest = json.loads((bundle / "ldmrt.json").read_text())
    assert manifest["stages"][0]["reads"]["class_labels"] == [{"from": "class", "count": 3, "null": True}]
    assert [row["blank"] for row in manifest["stages"][0]["guide"]["rows"]] == [["class"], []]
    draw = ("generate", bundle, "", "--guidance", 3, "--steps", 2, "-o", tmp_path / "drawn.png")
    drawn = ldmrt(*draw, "--class", 1)
    assert drawn.code == 0, drawn.err
    assert Image.open(tmp_path / "drawn.png").size == (16, 16)
    refused = ldmrt(*draw, "--class", 2)
    assert (refused.code, "expected 0 to 1; found 2" in refused.error) == (2, True)


@pytest.mark.slow(minutes=0.05)
def test_a_resumed_run_writes_the_same_weights(ldmrt: Any, words: tuple[object, ...], tmp_path: Path) -> None:
    assert_repeats(ldmrt, words, tmp_path, ("--class-dropout", 0.2))


def test_bad_input_is_refused_before_any_step(
    ldmrt: Any, words: tuple[object, ...], pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for more, message in (
        (("--data", pictures), "every image has a class of its own; expected fewer classes than images; found 3"),
        (("--size", 18), "unsupported --size; expected a multiple of 4; found 18"),
        (("--buckets",), "this training is of squares"),
        (("--class-dropout", 0), "class-dropout"),
        (("--autoencoder", tmp_path), "vae"),
    ):
        ran = ldmrt(*words, "--out", out, *more)
        assert ran.code == 2
        assert message in ran.error
    assert not (out / "training").exists()
