"""`ldmrt export --lora` with a transformer: it draws what diffusers draws with the LoRA fused, or writes nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import FluxPipeline, PixArtSigmaPipeline, SanaPipeline, ZImagePipeline
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.runtime import LdmrtError, Pipeline
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.samplers.noise.counter import FIRST, noise
from ldmrt.tools.cli import cli
from ldmrt.tools.options.checkpoint import NAMES, base_of

from ....support.families.compared import close
from ....support.loras import TEXT, adapter, save

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:.* it has no parity certificate"),
    pytest.mark.filterwarnings("ignore:request. .*is far from the model's own size"),
]
SEED, SIDE, SCALE = 3, 64, 0.7
PARTS = ("lora_up", "lora_down")
ASKED: dict[str, Any] = {"guidance_scale": 3.5, "num_inference_steps": 4, "height": SIDE, "width": SIDE}


@pytest.fixture(scope="module")
def lora(flux_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of rank 4 for some layers of the transformer and for CLIP; a model of few steps by its name."""
    torch.manual_seed(7)
    theirs = FluxPipeline.from_pretrained(flux_checkpoint)
    state = {f"transformer.{key}": v for key, v in adapter(theirs.transformer, ["to_q", "to_v", "proj_mlp"], 4).items()}
    state |= {f"text_encoder.{key}": value for key, value in adapter(theirs.text_encoder, TEXT, 4).items()}
    return save(state, tmp_path_factory.mktemp("lora") / "hyper-8steps.safetensors")


@pytest.fixture(scope="module")
def expected(flux_checkpoint: Path, lora: Path) -> NDArray[np.float32]:
    """The latents of diffusers' pipeline with the LoRA fused, from our noise."""
    theirs = FluxPipeline.from_pretrained(flux_checkpoint)
    theirs.set_progress_bar_config(disable=True)
    theirs.load_lora_weights(lora.parent, weight_name=lora.name)
    theirs.fuse_lora(components=["transformer", "text_encoder"], lora_scale=SCALE)
    theirs.unload_lora_weights()
    factor = theirs.vae_scale_factor
    x = torch.from_numpy(noise([SEED], FIRST, (16, SIDE // factor, SIDE // factor)))
    latents = theirs("two pears", latents=FluxPipeline._pack_latents(x, *x.shape), output_type="latent", **ASKED)
    found: NDArray[np.float32] = FluxPipeline._unpack_latents(latents.images, SIDE, SIDE, factor).numpy()
    return found


def drawn(pipeline: Pipeline) -> NDArray[np.float32]:
    return pipeline("two pears", seed=SEED, **ASKED).latents


def test_the_checkpoint_draws_what_diffusers_draws(
    flux_checkpoint: Path, lora: Path, expected: NDArray[np.float32], recwarn: pytest.WarningsRecorder
) -> None:
    """A flow has no spacing of timesteps that a LoRA of few steps would change, so nothing is warned of."""
    options = base_of(str(flux_checkpoint), {**dict.fromkeys(NAMES), "loras": ((lora, SCALE),), "embeddings": (),
                                             "text_encoders": {}})  # fmt: skip
    loaded, merged = options.load({"": torch.float32})
    (entry,) = merged["loras"]
    assert (entry["file"], entry["weight"]) == (lora.name, SCALE)
    assert entry["layers"] == {"transformer": 2 * 2 + 2 * 3, "text_encoder": 3 * 6}
    assert not [warning for warning in recwarn if "few steps" in str(warning.message)]
    plain = drawn(torch_pipeline(load(flux_checkpoint)))
    close(drawn(torch_pipeline(loaded)), expected)
    assert np.abs(plain - expected).max() > 0.01 * np.abs(expected).max()


def test_the_bundle_draws_with_it_at_run_time(
    flux_bundle: Path, bundle: Path, lora: Path, expected: NDArray[np.float32], tmp_path: Path
) -> None:
    """In diffusers' names; those of the original code are merged at export alone."""
    with open_pipeline(flux_bundle) as pipeline:
        plain = drawn(pipeline).tobytes()
        pipeline.load_lora(lora, "few")
        close(pipeline("two pears", seed=SEED, loras={"few": SCALE}, **ASKED).latents, expected)
        assert drawn(pipeline).tobytes() == plain
        original = {f"lora_unet_double_blocks_0_img_attn_qkv.{part}.weight": torch.ones(2, 2) for part in PARTS}
        with pytest.raises(LdmrtError, match="match no module of") as raised:
            pipeline.load_lora(save(original, tmp_path / "original.safetensors"))
        assert "ldmrt export CHECKPOINT BUNDLE --lora" in str(raised.value.hint)
    with open_pipeline(bundle) as pipeline, pytest.raises(LdmrtError, match="is for another family of models"):
        pipeline.load_lora(lora)


@pytest.mark.slow  # a whole bundle, which other tests share
def test_the_bundle_of_pixart_draws_with_it_at_run_time(
    pixart_bundle: Path, pefts: tuple[Path, NDArray[np.float32]]
) -> None:
    folder, expected = pefts
    with open_pipeline(pixart_bundle) as pipeline:
        pipeline.load_lora(folder, "peft")
        close(pipeline("two pears", seed=SEED, loras={"peft": 1}, **ASKED).latents, expected)


def test_another_familys_is_refused_before_a_file_is_written(sd3_checkpoint: Path, lora: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["export", str(sd3_checkpoint), str(tmp_path / "bundle"), "--lora", str(lora)])
    assert result.exit_code != 0
    problem = "is for another family of models; expected a LoRA of Stable Diffusion 3 or 3.5; found one of FLUX.1"
    assert problem in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def peft_of(kind: type[Any], checkpoint: Path, folder: Path, targets: list[str]) -> NDArray[np.float32]:
    """Save a LoRA of a transformer as training scripts do by PEFT, and return the latents with it merged."""
    theirs = kind.from_pretrained(checkpoint)
    theirs.set_progress_bar_config(disable=True)
    torch.manual_seed(8)
    wrapped = get_peft_model(theirs.transformer, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    wrapped.save_pretrained(folder)
    theirs.transformer = wrapped.merge_and_unload()
    factor = theirs.vae_scale_factor
    x = torch.from_numpy(noise([SEED], FIRST, (4, SIDE // factor, SIDE // factor)))
    asked = ASKED if kind is ZImagePipeline else {**ASKED, "use_resolution_binning": False}
    latents = theirs("two pears", latents=x, output_type="latent", **asked)
    return np.asarray(latents.images)


@pytest.fixture(scope="module")
def pefts(pixart_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[np.float32]]:
    """The folder of a LoRA of PixArt, and the latents with it merged."""
    folder, targets = tmp_path_factory.mktemp("peft"), ["to_q", "to_v", "to_out.0", "ff.net.0.proj", "linear_1", "proj"]
    return folder, peft_of(PixArtSigmaPipeline, pixart_checkpoint, folder, targets)


def check_merged(checkpoint: Path, folder: Path, expected: NDArray[np.float32]) -> None:
    options = base_of(str(checkpoint), {**dict.fromkeys(NAMES), "loras": ((folder, 1.0),), "embeddings": (),
                                        "text_encoders": {}})  # fmt: skip
    loaded, _ = options.load({"": torch.float32})
    plain = drawn(torch_pipeline(load(checkpoint)))
    close(drawn(torch_pipeline(loaded)), expected)
    assert np.abs(plain - expected).max() > 0.01 * np.abs(expected).max()


def test_pixarts_is_merged(pixart_checkpoint: Path, pefts: tuple[Path, NDArray[np.float32]]) -> None:
    check_merged(pixart_checkpoint, *pefts)


def test_sanas_is_merged(sana_checkpoint: Path, pixart_checkpoint: Path, tmp_path: Path) -> None:
    """Also of its convolutions."""
    targets = ["to_q", "to_v", "to_out.0", "conv_inverted", "conv_point", "linear_1", "time_embed.linear"]
    check_merged(sana_checkpoint, tmp_path, peft_of(SanaPipeline, sana_checkpoint, tmp_path, targets))
    result = CliRunner().invoke(cli, ["export", str(pixart_checkpoint), str(tmp_path / "out"), "--lora", str(tmp_path)])
    assert "is for another family of models; expected a LoRA of PixArt; found one of Sana" in str(result.exception)


def test_z_images_is_merged(z_image_checkpoint: Path, pixart_checkpoint: Path, tmp_path: Path) -> None:
    targets = ["to_q", "to_v", "to_out.0", "w1", "w2", "cap_embedder.1"]
    check_merged(z_image_checkpoint, tmp_path, peft_of(ZImagePipeline, z_image_checkpoint, tmp_path, targets))
    result = CliRunner().invoke(cli, ["export", str(pixart_checkpoint), str(tmp_path / "out"), "--lora", str(tmp_path)])
    assert "is for another family of models; expected a LoRA of PixArt; found one of Z-Image" in str(result.exception)


def test_a_lora_of_another_transformer_is_refused(
    pixart_checkpoint: Path, sd3_checkpoint: Path, lora: Path, pefts: tuple[Path, NDArray[np.float32]], tmp_path: Path
) -> None:
    for checkpoint, file, found in (
        (pixart_checkpoint, lora, "a LoRA of PixArt; found one of FLUX.1"),
        (sd3_checkpoint, pefts[0], "a LoRA of Stable Diffusion 3 or 3.5; found one of PixArt"),
    ):
        result = CliRunner().invoke(cli, ["export", str(checkpoint), str(tmp_path / "bundle"), "--lora", str(file)])
        assert f"is for another family of models; expected {found}" in str(result.exception)
