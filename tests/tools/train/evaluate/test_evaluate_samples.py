"""`ldmrt evaluate` on images of one's own: the bundle's images beside the folder's."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model.checkpoint.checkpoint import Checkpoint
from ldmrt.model.networks.plain_unet import PlainUNet
from ldmrt.model.scores.frechet import frechet_distance
from ldmrt.model.scores.nearest import nearest_neighbours
from ldmrt.model.training.data.captioned import ImageFolder
from ldmrt.model.training.tasks import presets
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.tools.commands.training.scores.features import latent_features, pooled
from ldmrt.tools.commands.training.scores.measures import LEAST, LEAST_OF_FOLDER
from ldmrt.tools.commands.training.scores.samples import MEASURES, feature_scores, sample_scores, shrunk

COUNT = 6


def words(i: int) -> str:
    return f"a cat {i}"


@pytest.fixture(scope="module")
def images(bundle: Path) -> np.ndarray:
    """The images that the bundle draws of ten captions, whose seeds are those that the command gives the first six."""
    pipeline = open_pipeline(bundle)
    return np.stack([pipeline(words(i), num_inference_steps=1, guidance_scale=1, seed=i).pixels[0] for i in range(10)])


@pytest.fixture(scope="module")
def folder(images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of noise and their captions."""
    root, numbers = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(numbers.integers(0, 256, images.shape[1:], np.uint8)).save(root / f"{i}.png")
    lines = [json.dumps({"file_name": f"{i}.png", "text": words(i)}) for i in range(12)]
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


def asked(bundle: Path, folder: Path, *more: object) -> tuple[object, ...]:
    return ("evaluate", bundle, "--data", folder, "--prompts", COUNT, "--steps", 1, "--guidance", 1, *more)


def test_scores_are_those_of_the_images(ldmrt: Any, bundle: Path, folder: Path) -> None:
    ran = ldmrt(*asked(bundle, folder, "--json"))
    assert ran.code == 0, ran.err
    scores = json.loads(ran.out)
    assert set(MEASURES) < scores.keys()
    assert (scores["images"], scores["reference images"], scores["features"]) == (COUNT, 12, "autoencoder")
    data, pipeline, extract = ImageFolder.open(folder), open_pipeline(bundle), latent_features(bundle)
    captions = [data.caption(0, i) for i in range(COUNT)]
    drawn = [
        pipeline(text, num_inference_steps=1, guidance_scale=1, seed=i).pixels[0] for i, text in enumerate(captions)
    ]
    real = [np.asarray(Image.open(folder / f"{i}.png")) for i in range(12)]
    features = [np.concatenate([extract(image[None]) for image in each]) for each in (real, drawn)]
    # rows of a batch differ in the last bits of float32
    assert scores["fid"] == pytest.approx(frechet_distance(*features), rel=1e-3)
    assert f"{scores['fid']:.4g}" in ldmrt(*asked(bundle, folder, "--measure", "fid")).out


def test_planted_copies_are_on_the_sheet(
    ldmrt: Any, bundle: Path, folder: Path, tmp_path: Path, images: np.ndarray
) -> None:
    """A folder that holds what the bundle draws: every image is a copy."""
    planted = tmp_path / "planted"
    planted.mkdir()
    lines = [json.dumps({"file_name": f"{i}.png", "text": words(i)}) for i in range(12)]
    (planted / "metadata.jsonl").write_text("\n".join(lines))
    data, pipeline = ImageFolder(planted, ImageFolder.open(folder).rows), open_pipeline(bundle)
    for i in range(12):
        pixels = pipeline(data.caption(0, i), num_inference_steps=1, guidance_scale=1, seed=i).pixels[0]
        Image.fromarray(pixels).save(planted / f"{i}.png")
    sheet = tmp_path / "copies.png"
    ran = ldmrt(*asked(bundle, planted, "--measure", "memorisation", "--sheet", sheet, "--json"))
    assert ran.code == 0, ran.err
    scores = json.loads(ran.out)
    assert set(scores) == {"images", "reference images", "memorisation", "lowest ratio"}
    assert scores["memorisation"] == 1
    side = images.shape[1]
    with Image.open(sheet) as opened:
        shown = np.asarray(opened)
    assert shown.shape == (3 * (side + 2) - 2, 4 * (side + 2) - 2, 3)  # six pairs, two in a row
    pair = shown[:side, :side].astype(int), shown[:side, side + 2 : 2 * side + 2].astype(int)
    assert np.abs(pair[0] - pair[1]).max() <= 1  # a level may be rounded otherwise in a batch


class Colours(torch.nn.Module):
    """The mean of each channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


def test_features_of_a_network_of_ones_own(ldmrt: Any, bundle: Path, folder: Path, tmp_path: Path) -> None:
    torch.jit.trace(Colours(), torch.zeros(1, 3, 8, 8)).save(str(tmp_path / "colours.pt"))
    ran = ldmrt(*asked(bundle, folder, "--features", tmp_path / "colours.pt", "--measure", "kid", "--json"))
    assert ran.code == 0, ran.err
    scores = json.loads(ran.out)
    assert set(scores) == {"images", "reference images", "kid", "features"}
    assert scores["features"].endswith("colours.pt")


def test_what_has_no_effect_is_refused(ldmrt: Any, bundle: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "no.pt").write_text("no network")
    for more, message in (
        (("--group", "food-drink"), "--group has no effect with images of your own"),
        (("--measure", "fid", "--sheet", tmp_path / "x.png"), "--sheet needs --measure memorisation"),
        (("--measure", "memorisation", "--features", "x.pt"), "--features has no effect on memorisation"),
        (("--features", tmp_path / "missing.pt"), f"no file {tmp_path / 'missing.pt'}"),
        (("--features", tmp_path / "no.pt"), f"cannot read {tmp_path / 'no.pt'}; expected TorchScript"),
        (("--prompts", 2), "too few images for this score; expected at least 4; found 2"),
    ):
        assert message in ldmrt(*asked(bundle, folder, *more)).err
    assert "--sheet has no effect without captioned images in --data" in (
        ldmrt("evaluate", bundle, "--data", tmp_path, "--sheet", tmp_path / "x.png").error
    )


def few(root: Path, pictures: list[np.ndarray]) -> Path:
    """A folder of captioned images."""
    root.mkdir()
    for i, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(root / f"{i}.png")
    lines = [json.dumps({"file_name": f"{i}.png", "text": words(i)}) for i in range(len(pictures))]
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


def test_too_few_images_are_noticed_before_any_is_drawn(
    bundle: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each measure the largest number that the score itself refuses, so the table of them cannot be too strict."""

    class Drew(Exception):
        pass

    def drawing(*_: object, **__: object) -> None:
        raise Drew

    monkeypatch.setattr("ldmrt.tools.commands.training.scores.samples.drawn", drawing)
    pipeline, extract = open_pipeline(bundle), lambda pixels: pixels.reshape(len(pixels), -1)[:, :5].astype(float)
    noise = np.random.default_rng(0)
    for name in MEASURES:
        score = (lambda real, drawn: nearest_neighbours(real, drawn)) if name == "memorisation" else (
            lambda real, drawn, name=name: feature_scores(real, drawn, [name])
        )  # fmt: skip
        for drawn, held in ((LEAST[name] - 1, 8), (8, LEAST_OF_FOLDER[name] - 1)):
            if not drawn:
                continue  # --prompts is 1 at least
            with pytest.raises(LdmrtError, match="too few images for this score"):
                score(noise.random((held, 5)), noise.random((drawn, 5)))
            root = few(tmp_path / f"{name} {drawn} {held}", [images[i % 10] for i in range(held)])
            with pytest.raises(LdmrtError, match="too few images for this score") as refused:
                sample_scores(pipeline, ImageFolder.open(root), drawn, [name], extract=extract)
            assert ("--prompts" if drawn < held else "--data") in str(refused.value.hint)
        score(noise.random((LEAST_OF_FOLDER[name], 5)), noise.random((LEAST[name], 5)))  # those are enough
        enough = few(tmp_path / f"{name} enough", list(images[: LEAST_OF_FOLDER[name]]))
        with pytest.raises(Drew):
            sample_scores(pipeline, ImageFolder.open(enough), LEAST[name], [name], extract=extract)
    equal = few(tmp_path / "equal", [images[0]] * 3)
    with pytest.raises(LdmrtError, match="too few images for this score"):
        sample_scores(pipeline, ImageFolder.open(equal), COUNT, ["memorisation"])


def test_latents_are_averaged_over_cells() -> None:
    latents = np.arange(2 * 3 * 8 * 8, dtype=float).reshape(2, 3, 8, 8)
    means = latents.reshape(2, 3, 4, 2, 4, 2).mean(axis=(3, 5))
    np.testing.assert_allclose(pooled(latents), means.reshape(2, -1), rtol=1e-15)  # order of sums
    assert pooled(np.ones((5, 2, 3, 6))).shape == (5, 2 * 3 * 4)


def test_large_images_are_compared_small() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    means = image.reshape(1, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    assert np.abs(shrunk(image) - means).max() <= 1  # Pillow rounds to levels once in each direction


def test_a_model_without_prompts_draws_as_many(folder: Path, images: np.ndarray) -> None:
    """In pixels, with the guidance that the command has by default."""
    config = replace(presets.UNCONDITIONAL, sample_size=images.shape[1], block_out_channels=(32, 32),
                     down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    checkpoint = Checkpoint(
        PlainUNet(config).eval(), None, {}, {}, presets.UNCONDITIONAL_SCHEDULER, {"_class_name": "DDPMPipeline"}
    )
    wanted = {"steps": 1, "guidance": 3.0, "scheduler": None}
    data = ImageFolder.open(folder, size=images.shape[1])
    scores = sample_scores(torch_pipeline(checkpoint), data, COUNT, ["memorisation"], **wanted)
    assert (scores["images"], scores["reference images"]) == (COUNT, 12)
