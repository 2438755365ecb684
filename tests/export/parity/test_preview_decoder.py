"""A bundle's preview decoder: diffusers' AutoencoderTiny on what rows predict, beside images that stay as they are."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ldmrt.export.parity.record import record
from ldmrt.model import load, with_preview_decoder
from ldmrt.runtime import BundleError, LdmrtError, Pipeline, Request
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.graphs import DECODER_PREVIEW
from ldmrt.runtime.bundle.recording import Recording
from ldmrt.runtime.parity.compare import Comparison, compare
from ldmrt.runtime.parity.metrics import psnr
from ldmrt.runtime.parity.tolerances import tolerances
from ldmrt.runtime.pipeline.refined import RefinedPipeline

from ...support.pipelines import randomise
from ...tools.conftest import command

ASKED = Request(["two pears", "a penguin"], num_inference_steps=4, seed=[3, 4], height=24, width=16)
pytestmark = pytest.mark.filterwarnings("ignore:.* it has no parity certificate")


@pytest.fixture(scope="module")
def pipeline(preview_bundle: Path) -> Iterator[Pipeline]:
    with open_pipeline(preview_bundle) as opened:
        yield opened


def expected(folder: Path, x0: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the images that diffusers decodes as its pipelines do where `vae` is the tiny autoencoder."""
    tiny = diffusers.AutoencoderTiny.from_pretrained(folder).eval()
    with torch.no_grad():
        images = tiny.decode(torch.from_numpy(x0) / tiny.config.scaling_factor).sample
    levels: NDArray[np.uint8] = ((images / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return levels


@pytest.mark.parametrize(
    "opening",
    [{}, {"backend": "openvino"}, {"low_memory": True}, {"fused": True}],
    ids=["onnxruntime", "openvino", "low memory", "fused"],
)
def test_previews_are_the_tiny_autoencoders(
    opening: dict[str, Any], preview_bundle: Path, tiny_autoencoder: Path
) -> None:
    """And the image is the same to the bit: with previews of every row, and without any."""
    with open_pipeline(preview_bundle, **opening) as opened:
        alone, x, previews = opened.generate(ASKED), None, []
        for state in opened.steps(ASKED):
            previews.append((np.array(state.x0), opened.preview(state.x0, state.stage)))
            x = state.x
        assert x is not None
        if "fused" not in opening:  # one call for a row and the sampler rounds otherwise than two
            np.testing.assert_array_equal(x, alone.latents)
            np.testing.assert_array_equal(opened.decode(x), alone.pixels)
    assert len(previews) == 4
    for x0, found in previews:
        assert np.ptp(found) > 25  # levels: there is something to see
        assert psnr(found, expected(tiny_autoencoder, x0)) > 60
        assert psnr(found, expected(tiny_autoencoder, x0 / 2)) < 40  # its own scale matters


def test_without_one_previews_are_decoded_as_images_are(pipeline: Pipeline, bundle: Path) -> None:
    latents = np.random.default_rng(0).standard_normal((2, 4, 8, 8), np.float32)
    with open_pipeline(bundle) as plain:
        assert plain.stage.preview is None
        np.testing.assert_array_equal(plain.preview(latents), plain.decode(latents))
    np.testing.assert_array_equal(pipeline.decode(latents), plain_images(bundle, latents))
    assert (pipeline.preview(latents) != pipeline.decode(latents)).any()


def plain_images(bundle: Path, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
    with open_pipeline(bundle) as plain:
        return plain.decode(latents)


def test_a_callback_previews_its_latents(pipeline: Pipeline, tiny_autoencoder: Path) -> None:
    seen: list[tuple[Any, Any]] = []

    def callback(opened: Pipeline, row: int, t: float, given: dict[str, Any]) -> None:
        seen.append((given["latents"].copy(), opened.preview(given["latents"])))

    told = pipeline.generate(replace(ASKED, callback_on_step_end=callback))
    np.testing.assert_array_equal(told.pixels, pipeline.generate(ASKED).pixels)
    assert len(seen) == 4
    assert all(psnr(found, expected(tiny_autoencoder, x)) > 60 for x, found in seen)


def test_of_a_refiner_either_has_one(pipeline: Pipeline, bundle: Path) -> None:
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8), np.float32)
    with open_pipeline(bundle) as plain:
        for both in ((pipeline, plain), (plain, pipeline)):
            np.testing.assert_array_equal(RefinedPipeline(*both).preview(latents), pipeline.preview(latents))


def test_the_manifest_states_its_scale(preview_bundle: Path, tmp_path: Path) -> None:
    opened = Bundle.open(preview_bundle)
    assert opened.manifest["stages"][0]["preview"] == {"scaling_factor": 0.5, "shift_factor": 0.0}
    assert DECODER_PREVIEW in opened.components
    assert "vae_preview" not in json.loads((preview_bundle / "model_index.json").read_text())  # which diffusers reads
    for damage in ({"scaling_factor": 0.0, "shift_factor": 0.0}, {"scaling_factor": 1.0}, [], "tiny"):
        folder = shutil.copytree(preview_bundle, tmp_path / "damaged", dirs_exist_ok=True)
        manifest = json.loads((folder / "ldmrt.json").read_text())
        manifest["stages"][0]["preview"] = damage
        (folder / "ldmrt.json").write_text(json.dumps(manifest))
        with pytest.raises(BundleError, match=r"ldmrt.json is damaged at .*preview of stage 0"):
            Bundle.open(folder, check=False)


@pytest.fixture(scope="module")
def reference(checkpoint: Path, tiny_autoencoder: Path) -> Recording:
    return record(with_preview_decoder(load(checkpoint), tiny_autoencoder), "two pears", side=16)


def compared(pipeline: Pipeline, bundle: Path, reference: Recording) -> Comparison:
    every = compare(pipeline, "onnxruntime", reference, tolerances(Bundle.open(bundle)))
    return next(one for one in every if one.what == DECODER_PREVIEW)


def test_its_parity_is_measured_also_without_pytorch(
    pipeline: Pipeline, preview_bundle: Path, reference: Recording, tmp_path: Path
) -> None:
    """The recording that a bundle keeps has its call; another scale or shift is seen, and so are other weights."""
    reference.small.save(tmp_path / "reference.npz")
    kept = Recording.load(tmp_path / "reference.npz", pipeline.stage)
    for recording, calls in ((reference, 4), (kept, 1)):
        found = compared(pipeline, preview_bundle, recording)
        assert found.within
        assert len(found.figures) == calls + 1  # with the scale
    for scale, shift in ((1.0, 0.0), (0.5, 0.1)):
        other = replace(pipeline, stage=pipeline.stage.previewed(scale, shift))
        assert not compared(other, preview_bundle, kept).within


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "channels": ({"latent_channels": 16}, "another latent_channels than the model; expected 4; found 16"),
    "factor": ({"levels": 3}, "another number of pixels for each latent than the model; expected 2; found 4"),
    "colours": ({"out_channels": 4, "in_channels": 4}, "another out_channels than the model; expected 3; found 4"),
    "shift": ({"shift_factor": 0.5}, "unsupported shift_factor of a tiny autoencoder beside a U-Net; expected 0"),
    "activation": ({"act_fn": "selu"}, "config has an invalid act_fn|unsupported act_fn"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_that_does_not_fit_is_refused(name: str, checkpoint: Path, tmp_path: Path) -> None:
    change, problem = REFUSED[name]
    levels, given = change.get("levels", 2), {key: value for key, value in change.items() if key != "levels"}
    sizes = {f"{side}_block_out_channels": [8] * levels for side in ("encoder", "decoder")}
    sizes |= {f"num_{side}_blocks": [1] * levels for side in ("encoder", "decoder")}
    fits = {key: value for key, value in given.items() if key != "act_fn"}
    randomise(diffusers.AutoencoderTiny(**sizes, **fits)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **given}))
    with pytest.raises(LdmrtError, match=rf"^vae_decoder_preview: .*({problem})"):
        with_preview_decoder(load(checkpoint), tmp_path)


def test_what_is_no_tiny_autoencoder_is_refused_before_anything_is_written(
    checkpoint: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.safetensors").write_bytes(b"")
    for folder, problem in (
        (checkpoint / "vae", "unsupported AutoencoderKL in config.json; expected AutoencoderTiny"),
        (checkpoint, "unsupported AutoencoderKL in config.json; expected AutoencoderTiny"),
        (bundle, f"{bundle} is a bundle, not a tiny autoencoder"),
        (tmp_path / "file.safetensors", "expected a folder in diffusers' layout, with its config.json; found a file"),
        (tmp_path / "nowhere", "missing file"),
    ):
        assert command("export", checkpoint, tmp_path / "out", "--preview-decoder", folder) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: vae_decoder_preview: ")
        assert problem in " ".join(error.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # a bundle in halves, certified
def test_exported_in_halves_it_is_certified(
    checkpoint: Path, tiny_autoencoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has rows of its own in what is verified, inspected and planned; an export without it leaves it out."""
    out, given = tmp_path / "bundle", ("--preview-decoder", tiny_autoencoder)
    assert command("export", checkpoint, out, "--precision", "fp16,unet=fp32", *given) == 0
    opened = Bundle.open(out)
    assert opened.certificate_issues == []
    assert opened.precision(DECODER_PREVIEW) == "fp16"
    assert command("verify", out) == 0
    assert command("verify", out, "--against", checkpoint, *given) == 0
    assert command("verify", out, "--against", checkpoint) == 2
    assert "try: --preview-decoder FOLDER" in capsys.readouterr().err
    capsys.readouterr()
    assert command("inspect", out) == 0
    assert f"previews by {DECODER_PREVIEW}, scaling factor 0.5" in capsys.readouterr().out
    assert command("plan", out, "--sizes", "16x16", "--json") == 0
    engines = json.loads(capsys.readouterr().out)["engines"]
    assert DECODER_PREVIEW in [engine["component"] for engine in engines]
    assert command("export", checkpoint, out, "--precision", "fp16,unet=fp32", "--no-verify") == 0
    assert DECODER_PREVIEW not in Bundle.open(out).components
    assert not (out / DECODER_PREVIEW).exists()
