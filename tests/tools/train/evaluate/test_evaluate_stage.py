"""`ldmrt evaluate --stage`: the PSNR of a stage that enlarges, beside that of interpolation."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.runtime import LdmrtError, Pipeline
from ldmrt.tools.cli import cli
from ldmrt.tools.commands.training.scores.enlarging import MEANS, THROUGH, enlarging_scores, mean_psnr
from ldmrt.tools.console.training.data import open_folder

from ....export.bundle.test_pixel_upscaler import save

SIDE = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images of blocks of 4x4 pixels, and their captions."""
    root, numbers = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    for i in range(5):
        blocks = numbers.integers(0, 256, (SIDE // 4, SIDE // 4, 3), np.uint8)
        Image.fromarray(blocks.repeat(4, axis=0).repeat(4, axis=1)).save(root / f"{i}.png")
    rows = [json.dumps({"file_name": f"{i}.png", "text": "blocks"}) for i in range(5)]
    (root / "metadata.jsonl").write_text("\n".join(rows))
    return root


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return torch_pipeline(load(save(tmp_path_factory.mktemp("upscaler"))))


def by_hand(found: Any, expected: Any) -> float:
    """The slow obvious way."""
    return float(10 * np.log10(255**2 / np.mean((np.asarray(found, float) - np.asarray(expected, float)) ** 2)))


def test_scores_are_those_of_a_loop(pipeline: Pipeline, folder: Path) -> None:
    count, found = enlarging_scores(
        pipeline, "base", folder, 100, num_inference_steps=2, noise_level=3, seed=7, scheduler=None
    )
    assert (count, list(found), list(found[MEANS])) == (5, [MEANS], ["stage", "bicubic", "Lanczos"])
    data = open_folder(folder, SIDE)
    large = [Image.fromarray(data.draw(7, i).image) for i in range(5)]
    small = [image.resize((SIDE // 2, SIDE // 2), Image.Resampling.BOX) for image in large]
    for name, how in (("bicubic", Image.Resampling.BICUBIC), ("Lanczos", Image.Resampling.LANCZOS)):
        psnrs = [by_hand(s.resize((SIDE, SIDE), how), image) for s, image in zip(small, large, strict=True)]
        assert found[MEANS][name] == pytest.approx(np.mean(psnrs))
    psnrs = [
        by_hand(pipeline(image=s, num_inference_steps=2, noise_level=3, seed=7 + i).pixels[0], large[i])
        for i, s in enumerate(small)
    ]
    assert found[MEANS]["stage"] == pytest.approx(np.mean(psnrs))


def test_images_that_are_exact_have_a_finite_score() -> None:
    white = np.full((2, 4, 4, 3), 255, np.uint8)
    assert mean_psnr(white, white) == 100


def test_small_images_go_through_an_autoencoder(pipeline: Pipeline, folder: Path) -> None:
    seen = []

    def inverted(images: np.ndarray) -> np.ndarray:
        seen.append(images.shape)
        return 255 - images.astype(np.float32)

    _, found = enlarging_scores(pipeline, "base", folder, 3, num_inference_steps=1, noise_level=0, through=inverted)
    assert seen == [(3, SIDE // 2, SIDE // 2, 3)]
    assert found[THROUGH]["bicubic"] < found[MEANS]["bicubic"] - 3


def test_an_unknown_stage_is_named(pipeline: Pipeline, folder: Path) -> None:
    with pytest.raises(LdmrtError, match="no such stage that enlarges; expected base"):
        enlarging_scores(pipeline, "upscale", folder, 3)


def test_sizes_that_have_no_small_images_are_refused(pipeline: Pipeline, folder: Path) -> None:
    odd = replace(pipeline, stage=replace(pipeline.stage, own=(25, 25)))
    with pytest.raises(LdmrtError, match="images of this size have no small ones; expected a multiple of 2; found 25"):
        enlarging_scores(odd, "base", folder, 3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundle")
    assert (
        CliRunner().invoke(cli, ["export", str(save(root / "upscaler")), str(root / "b"), "--no-verify"]).exit_code == 0
    )
    return root / "b"


def test_command(ldmrt: Any, bundle: Path, folder: Path, tmp_path: Path) -> None:
    words = ("evaluate", bundle, "--data", folder, "--stage", "base", "--prompts", 2, "--steps", 1)
    ran = ldmrt(*words, "--noise-level", 0, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["pictures"] == 2
    assert list(found["psnr"]) == [MEANS]
    assert f"{found['psnr'][MEANS]['stage']:.2f}" in ldmrt(*words, "--noise-level", 0).out
    for more, message in (
        (("--group", "food-drink"), "--group has no effect with --stage"),
        (("--guidance", 3), "--guidance has no effect with --stage"),
        (("--data", tmp_path), f"no large images in {tmp_path}; expected metadata.jsonl"),
        (("--noise-level", 99), "invalid noise_level; expected 0 to 29; found 99"),
    ):
        assert message in ldmrt(*words, *more).error
    assert "--noise-level needs --stage" in ldmrt("evaluate", bundle, "--data", folder, "--noise-level", 3).error
