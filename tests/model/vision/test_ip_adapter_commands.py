"""A bundle with an IP-Adapter, from its export to its images, by the commands that users type."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from ldmrt.runtime import LdmrtError, Pipeline
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.bundle.bundle import Bundle

from ...conftest import sharing
from ...support.families.ip_adapters import save_ip_adapter
from ...tools.conftest import command

PROMPT = "two pears"
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers


@pytest.fixture(scope="module")
def file(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    unet = diffusers.UNet2DConditionModel.from_pretrained(checkpoint / "unet")
    return save_ip_adapter(tmp_path_factory.mktemp("plus"), unet, "plus", suffix=".bin")


@pytest.fixture(scope="module")
def made(checkpoint: Path, file: Path, tmp_path_factory: pytest.TempPathFactory, export_once: Any) -> Path:
    """A certified bundle in half precision but for its U-Net, with the U-Net cut in two."""
    bundle = tmp_path_factory.mktemp("bundles") / "prompted"
    with sharing(export_once):
        precision = "image_encoder=fp16,image_projection=fp16"
        words = ("--ip-adapter", file, "--precision", precision, "--deep-cache")
        assert command("export", checkpoint, bundle, *words) == 0
    return bundle


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "own.png"
    small = np.random.default_rng(2).integers(0, 255, (6, 7, 3), np.uint8)
    Image.fromarray(small).resize((70, 50), Image.Resampling.BICUBIC).save(path)
    return path


def test_commands_refuse_what_cannot_be(checkpoint: Path, file: Path, tmp_path: Path, capsys: Any) -> None:
    words = ("--ip-adapter", file, "--ip-adapter", file)
    assert command("export", checkpoint, tmp_path / "bundle", *words) == 2
    assert "several IP-Adapters at once are not supported" in capsys.readouterr().err
    assert command("export", checkpoint, tmp_path / "bundle", "--ip-adapter", tmp_path / "gone.bin") == 2
    assert "error: ip_adapter: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_without_one_says_how_to_export_it(bundle: Path, image: Path, tmp_path: Path, capsys: Any) -> None:
    words = ("--ip-adapter-image", image, "-o", tmp_path / "out.png")
    assert command("generate", bundle, PROMPT, *words) == 2
    err = capsys.readouterr().err
    assert "this model takes no ip_adapter_image" in err
    assert "ldmrt export CHECKPOINT BUNDLE --ip-adapter FILE" in err


@pytest.mark.parametrize("scale", ["much", "[1]", "true", '{"ups": 1}'])
def test_an_invalid_scale_is_refused_by_its_option(scale: str, bundle: Path, tmp_path: Path, capsys: Any) -> None:
    words = ("--ip-adapter-scale", scale, "-o", tmp_path / "out.png")
    assert command("generate", bundle, PROMPT, *words) == 2
    assert "--ip-adapter-scale" in capsys.readouterr().err


@pytest.mark.slow
def test_a_bundle_draws_what_diffusers_draws(made: Path, checkpoint: Path, file: Path, image: Path) -> None:
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    theirs.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name, low_cpu_mem_usage=False)
    scale = {"up": {"block_1": [0.4, 1.5]}, "down": 0.5}
    theirs.set_ip_adapter_scale(scale)
    latents = np.random.default_rng(3).standard_normal((1, 4, 12, 8), dtype=np.float32)
    expected = theirs(
        PROMPT, num_inference_steps=4, guidance_scale=5.0, height=24, width=16, latents=torch.from_numpy(latents),
        ip_adapter_image=Image.open(image), output_type="latent",
    ).images.numpy()  # fmt: skip
    asked: dict[str, Any] = {
        "num_inference_steps": 4, "guidance_scale": 5.0, "height": 24, "width": 16, "latents": latents,
        "ip_adapter_image": image, "ip_adapter_scale": scale, "output_type": "latent",
    }  # fmt: skip
    for how in ({}, {"low_memory": True}, {"fused": True}):
        with open_pipeline(made, "onnxruntime", **how) as pipeline:
            found = pipeline(PROMPT, **asked).array
            # the encoder and the projection are in half precision, whose tokens are off by 1e-3
            assert np.abs(found - expected).max() <= 5e-3 * np.abs(expected).max(), how
            assert np.abs(found - pipeline(PROMPT, **asked | {"ip_adapter_scale": 0.0}).array).max() > 0.05


@pytest.mark.slow
def test_without_an_image_the_bundle_draws_as_one_without_the_adapter(made: Path, bundle: Path, image: Path) -> None:
    def latents(pipeline: Pipeline, **given: Any) -> Any:
        with pipeline:
            return pipeline(PROMPT, num_inference_steps=4, output_type="latent", **given).array

    plain = latents(open_pipeline(bundle, "onnxruntime", check=False))
    for given in ({}, {"ip_adapter_image": image, "ip_adapter_scale": 0.0}):
        found = latents(open_pipeline(made, "onnxruntime"), **given)
        # a product with 0 is added to each attention: nothing but the order of a kernel may differ
        assert np.abs(found - plain).max() <= 1e-6 * np.abs(plain).max()


@pytest.mark.slow
def test_a_bundle_is_verified_with_its_adapter_alone(made: Path, checkpoint: Path, file: Path, capsys: Any) -> None:
    opened = Bundle.open(made)
    assert opened.components == (
        "text_encoder", "image_encoder", "image_projection", "unet", "vae_decoder", "vae_encoder"
    )  # fmt: skip
    certified = opened.certificate
    assert certified is not None
    assert {"image_encoder", "image_projection"} <= {one.component for one in certified.figures}
    assert command("verify", made, "--backend", "onnxruntime") == 0
    capsys.readouterr()
    assert command("verify", made, "--against", checkpoint) == 2
    assert "the bundle has an IP-Adapter, and the checkpoint has none" in capsys.readouterr().err
    words = ("--against", checkpoint, "--ip-adapter", file, "--backend", "onnxruntime")
    assert command("verify", made, *words) == 0


@pytest.mark.slow
def test_an_image_is_drawn_again_with_its_image_prompt(made: Path, image: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out.png"
    words = ("--ip-adapter-image", image, "--ip-adapter-scale", '{"up": 1.5}', "--steps", 4, "-o", out)
    assert command("generate", made, PROMPT, *words) == 0
    replayed = ("replay", out, "--bundle", made, "--inputs", image.parent)
    assert command(*replayed) == 0
    assert "identical" in capsys.readouterr().out
    lines = tmp_path / "lines.jsonl"
    line = {"prompt": PROMPT, "steps": 4, "ip_adapter_image": str(image), "ip_adapter_scale": {"up": 1.5}}
    lines.write_text(json.dumps(line))
    assert command("batch", made, lines, tmp_path / "drawn") == 0
    (drawn,) = (tmp_path / "drawn").rglob("*.png")
    np.testing.assert_array_equal(np.asarray(Image.open(drawn)), np.asarray(Image.open(out)))


@pytest.mark.slow
def test_an_encoder_that_is_gone_is_named(made: Path, image: Path, tmp_path: Path) -> None:
    """The stage says that there is one."""
    damaged = Path(shutil.copytree(made, tmp_path / "bundle"))
    manifest = json.loads((damaged / "ldmrt.json").read_text())
    del manifest["components"]["image_encoder"]
    (damaged / "ldmrt.json").write_text(json.dumps(manifest))
    shutil.rmtree(damaged / "image_encoder")
    pipeline = open_pipeline(damaged, "onnxruntime", check=False)
    with pipeline, pytest.raises(LdmrtError, match="image_encoder: is missing; expected a network of the bundle"):
        pipeline(PROMPT, ip_adapter_image=image)
