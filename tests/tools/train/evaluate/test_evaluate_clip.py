"""`ldmrt evaluate --measure clip`, against torchmetrics on the same images."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.model.scores.clip_score import clip_score
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.tools.commands.training.evaluate import held_out
from ldmrt.tools.commands.training.scores import clip as clip_module
from ldmrt.tools.commands.training.scores.clip import open_clip, quiet
from ldmrt.tools.commands.training.scores.samples import caption_score, check_drawing, sample_scores

from ....support.emoji_packages import sprite_set
from ....support.pipelines import save_pipeline

LENGTH = 12  # tokens that the text half of the model reads, fewer than some captions have
CAPTIONS = [
    "a red apple",
    "two pears",
    "a penguin on a yellow background, a red apple, two pears, a penguin, two pears",
]


def save_clip(folder: Path, tokenizer: Path) -> Path:
    """Write a CLIP model with random weights as transformers saves it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    words = CLIPTokenizer.from_pretrained(tokenizer)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(words), "max_position_embeddings": LENGTH, "eos_token_id": words.eos_token_id}
    vision = {**sizes, "image_size": 24, "patch_size": 6}
    torch.manual_seed(3)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    with quiet():
        images = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
        CLIPModel(config).eval().save_pretrained(folder)
        CLIPProcessor(images, words).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "model", checkpoint / "tokenizer")


class Features:
    """A model whose features are tensors, as torchmetrics expects them, and not transformers 5's outputs."""

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config

    def to(self, device: object) -> "Features":
        return self

    def get_image_features(self, *given: Any) -> torch.Tensor:
        found = self.model.get_image_features(*given)
        return getattr(found, "pooler_output", found)

    def get_text_features(self, *given: Any) -> torch.Tensor:
        found = self.model.get_text_features(*given)
        return getattr(found, "pooler_output", found)


@torch.no_grad()
def of_torchmetrics(model: Path, images: np.ndarray, captions: list[str]) -> float:
    from torchmetrics.multimodal import CLIPScore
    from transformers import CLIPModel, CLIPProcessor

    with quiet():
        loaded = Features(CLIPModel.from_pretrained(model)), CLIPProcessor.from_pretrained(model)
    metric = CLIPScore(lambda: loaded)
    metric.update([torch.from_numpy(image.copy()).permute(2, 0, 1) for image in images], captions)
    return float(metric.compute())


def test_score_is_torchmetrics(model: Path) -> None:
    """Of images of several shapes, and of captions of which one is too long; and 0 where the mean is below it."""
    numbers, clip, scores = np.random.default_rng(0), open_clip(str(model)), list[float]()
    for shape in ((24, 24), (40, 40), (17, 31)):
        images = numbers.integers(0, 256, (len(CAPTIONS), *shape, 3), np.uint8)
        with pytest.warns(UserWarning, match="Encountered caption longer than"):
            expected = of_torchmetrics(model, images, CAPTIONS)
        scores.append(caption_score(clip, images, CAPTIONS))
        assert scores[-1] == pytest.approx(expected, abs=1e-3)  # float32 there after the features
    assert max(scores) > 1  # not all are cut off
    assert clip_score(np.eye(3), 2 * np.eye(3)) == 100
    assert clip_score(np.eye(3), -np.eye(3)) == 0


def test_many_images_are_scored_in_batches(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = np.random.default_rng(1).integers(0, 256, (23, 24, 24, 3), np.uint8)
    captions = [CAPTIONS[i % 3] for i in range(23)]
    clip = open_clip(str(model))
    # captions that are filled up to the longest of their batch, in float32
    assert caption_score(clip, images, captions) == pytest.approx(clip_score(*clip(images, captions)), abs=1e-4)
    assert caplog.text == ""  # transformers has warnings of long captions


def test_command(ldmrt: Any, bundle: Path, pictures: Path, model: Path) -> None:
    from ldmrt.model.training.data.captioned import ImageFolder

    words = ("evaluate", bundle, "--data", pictures, "--prompts", 5, "--steps", 1, "--guidance", 1, "--clip", model)
    ran = ldmrt(*words, "--measure", "clip", "--json")
    assert ran.code == 0, ran.err
    scores = json.loads(ran.out)
    assert scores.keys() == {"images", "clip"}
    data, pipeline = ImageFolder.open(pictures), open_pipeline(bundle)
    captions = [data.caption(0, i) for i in range(5)]
    images = [
        pipeline(text, num_inference_steps=1, guidance_scale=1, seed=i).pixels[0] for i, text in enumerate(captions)
    ]
    # a level of an image may be rounded otherwise in a batch
    assert scores["clip"] == pytest.approx(of_torchmetrics(model, np.stack(images), captions), abs=1e-3)
    both = json.loads(ldmrt(*words, "--measure", "clip", "--measure", "memorisation", "--json").out)
    assert both["clip"] == scores["clip"]
    assert both["reference images"] == 3
    assert f"{scores['clip']:.4g}" in ldmrt(*words, "--measure", "clip").out


def test_emoji_are_compared_with_their_captions(checkpoint: Path, model: Path, tmp_path: Path) -> None:
    data = held_out(sprite_set(tmp_path), "noto", (), 64)
    found = sample_scores(
        torch_pipeline(load(checkpoint)), data, 3, ["clip"], clip=open_clip(str(model)), steps=1, guidance=1.0
    )
    assert found.keys() == {"images", "clip"}


def test_what_is_no_clip_model_is_refused(
    ldmrt: Any, bundle: Path, checkpoint: Path, pictures: Path, model: Path, tmp_path: Path
) -> None:
    words = ("evaluate", bundle, "--data", pictures)
    lacking, damaged = tmp_path / "lacking", tmp_path / "damaged"
    for folder in (lacking, damaged):
        shutil.copytree(model, folder)
    (damaged / "model.safetensors").write_bytes(b"no weights")
    from safetensors.torch import load_file, save_file

    state = load_file(lacking / "model.safetensors")
    save_file({k: v for k, v in state.items() if "vision" not in k}, lacking / "model.safetensors", {"format": "pt"})
    for more, message in (
        (("--measure", "clip"), "--measure clip needs --clip"),
        (("--clip", model), "--clip needs --measure clip"),
        (
            ("--measure", "clip", "--clip", tmp_path / "none"),
            f"no CLIP model in {tmp_path / 'none'}; expected config.json",
        ),
        (
            ("--measure", "clip", "--clip", checkpoint / "text_encoder"),
            "is no CLIP model; expected model_type clip",
        ),
        (("--measure", "clip", "--clip", damaged), f"{damaged} cannot be loaded"),
        (("--measure", "clip", "--clip", lacking), f"{lacking} lacks weights"),
        (("--measure", "clip", "--clip", model, "--sheet", tmp_path / "x.png"), "--sheet needs --measure memorisation"),
    ):
        assert message in ldmrt(*words, *more).error
    plain = torch_pipeline(load(save_pipeline("ddpm", tmp_path / "ddpm")))
    with pytest.raises(LdmrtError, match="this model reads no prompt that its images could be compared with"):
        check_drawing(plain, ["clip"])


def test_scores_of_what_has_no_direction_are_refused() -> None:
    for images, captions, message in (
        (np.zeros((2, 3)), np.ones((2, 3)), "features are 0, so that they have no direction; found 2"),
        (np.ones((2, 3)), np.ones((3, 3)), "each image needs a caption; expected 2; found 3"),
        (np.full((1, 3), np.nan), np.ones((1, 3)), "features are not finite"),
    ):
        with pytest.raises(LdmrtError, match=message):
            clip_score(images, captions)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_name_of_the_hub_is_fetched(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that are read and no others; older weights where there are no newer ones."""
    held = [weights, "config.json", "merges.txt", "flax_model.msgpack", "tf_model.h5"]
    asked = []

    def fetch(where: str, name: str, patterns: list[str]) -> Path:
        asked.append(name)
        for file in held:
            if any(Path(file).match(pattern) for pattern in patterns):
                (tmp_path / file).write_text('{"model_type": "clip"}')
        return tmp_path

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(clip_module, "fetch", fetch)
    assert clip_module.clip_folder("owner/clip") == tmp_path
    assert set(asked) == {"owner/clip"}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(held[:3])
