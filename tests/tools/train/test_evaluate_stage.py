"""`ldmrt evaluate --stage`: the PSNR of a stage that enlarges, beside that of interpolation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.runtime import LdmrtError, Pipeline
from ldmrt.tools.commands.training.enlarging import MEANS, enlarging_scores

from ...export.bundle.test_pixel_upscaler import save

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


def mean_psnr(pairs: list[tuple[Any, Any]]) -> float:
    """The slow obvious way."""
    values = []
    for found, expected in pairs:
        error = np.mean((np.asarray(found, np.float64) - np.asarray(expected, np.float64)) ** 2)
        values.append(10 * np.log10(255**2 / error))
    return float(np.mean(values))


def test_scores_are_those_of_a_loop(pipeline: Pipeline, folder: Path) -> None:
    found = enlarging_scores(pipeline, "base", folder, 100, steps=2, noise_level=3, seed=7)
    assert list(found) == [MEANS]
    assert list(found[MEANS]) == ["pictures", "base", "bicubic", "Lanczos"]
    large = [Image.open(folder / f"{i}.png") for i in range(5)]
    small = [image.resize((SIDE // 2, SIDE // 2), Image.Resampling.BOX) for image in large]
    bicubic = [image.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for image in small]
    assert found[MEANS]["pictures"] == 5
    assert found[MEANS]["bicubic"] == pytest.approx(mean_psnr(list(zip(bicubic, large, strict=True))))
    # In the order of the data, which the seed shuffles: every image is tried with every seed.
    asked: dict[str, Any] = {"num_inference_steps": 2, "noise_level": 3}
    tried = [
        [mean_psnr([(pipeline(image=image, seed=7 + place, **asked).pixels[0], whole)]) for place in range(5)]
        for image, whole in zip(small, large, strict=True)
    ]
    assert min(map(min, tried)) < found[MEANS]["base"] < max(map(max, tried))


def test_small_images_go_through_an_autoencoder(pipeline: Pipeline, folder: Path) -> None:
    seen = []

    def inverted(images: np.ndarray) -> np.ndarray:
        seen.append(images.shape)
        return 255 - images.astype(np.float32)

    found = enlarging_scores(pipeline, "base", folder, 3, steps=1, noise_level=0, through=inverted)
    assert seen == [(3, SIDE // 2, SIDE // 2, 3)]
    plain, through = found.values()
    assert through["bicubic"] < plain["bicubic"] - 3


@pytest.mark.parametrize("name", ["upscale", ""])
def test_an_unknown_stage_is_named(name: str, pipeline: Pipeline, folder: Path) -> None:
    with pytest.raises(LdmrtError, match="no such stage that enlarges; expected base"):
        enlarging_scores(pipeline, name, folder, 3, steps=1)
