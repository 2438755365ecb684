"""Bundles of models that read no prompt: certified, run from the command line, and their faults found."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.parity.metrics import psnr
from ldmrt.runtime.pipeline.conditioning.beside import BESIDE

from ...conftest import sharing
from ...runtime.bundle.test_bundle_paths import list_anew
from ...support.damage.bundle_faults import inputs, skipped, weight
from ...support.families import PLAIN
from ...support.pipelines import save_pipeline
from ..families.test_stable_diffusion import STEPS, close, picture
from .test_conditioned_bundles import culprit, ldmrt, stage
from .test_plain import told

pytestmark = pytest.mark.slow(minutes=0.3)  # five bundles
Make = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, export_once: Any) -> Make:
    """The checkpoint and the certified bundle of a family, made once."""
    done: dict[str, tuple[Path, Path]] = {}

    def make(name: str) -> tuple[Path, Path]:
        if name not in done:
            root = tmp_path_factory.mktemp(name)
            with sharing(export_once):
                assert ldmrt("export", save_pipeline(name, root / "checkpoint"), root / "bundle") == 0
            done[name] = root / "checkpoint", root / "bundle"
        return done[name]

    return make


@pytest.mark.usefixtures("row_by_row")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", PLAIN)
def test_bundle_draws_what_its_checkpoint_draws(name: str, backend: str, made: Make) -> None:
    """Also of an odd size, and with one stage in memory at a time, on one row."""
    checkpoint, bundle = made(name)
    unit = 1 if name == "super-resolution" else PLAIN[name].factor
    asked: dict[str, Any] = {"num_inference_steps": STEPS, "num_images_per_prompt": 3, **told(name, 13, 17)}
    asked |= {} if "image" in asked else {"height": 13 * unit, "width": 17 * unit}
    expected = torch_pipeline(load(checkpoint))(**asked)
    for low_memory in (False, True):
        with open_pipeline(bundle, backend, low_memory=low_memory) as pipeline:
            found = pipeline(**asked)
        close(found.latents, expected.latents)
        # A code may flip where two are equally near; the decoder then draws another patch.
        assert psnr(found.pixels, expected.pixels) > (50 if PLAIN[name].vae else 60)


def test_half_precision_keeps_the_noise_level_in_float32(made: Make, tmp_path: Path) -> None:
    """Its sines have angles of thousands, which a half rounds to whole numbers."""
    place = tmp_path / "bundle"
    assert ldmrt("export", made("score-sde")[0], place, "--precision", "fp16") == 0
    assert list(Bundle.open(place).manifest["components"]["unet"]["islands"]) == ["time_proj"]


@pytest.mark.parametrize("name", ["ldm", "super-resolution"])
def test_a_codebook_is_decoded_in_tiles(name: str, made: Make) -> None:
    """Tiles of the image as a whole: 4.5 bits of 8 are the same where the passes over them end."""
    asked: dict[str, Any] = {"num_inference_steps": 2, "height": 96, "width": 128}
    asked |= {"image": picture(32)} if name == "super-resolution" else {}
    with open_pipeline(made(name)[1]) as whole, open_pipeline(made(name)[1], tile=64) as tiled:
        assert psnr(tiled(**asked).pixels, whole(**asked).pixels) > 33


def test_commands(made: Make, tmp_path: Path) -> None:
    small = tmp_path / "small.png"
    picture(16).save(small)
    drawn = ("generate", made("ldm")[1], "-n", 3, "--steps", 2, "-o", tmp_path / "drawn.png")
    assert ldmrt(*drawn) == 0
    with Image.open(tmp_path / "drawn-02.png") as image:
        assert image.size == (32, 32)
        facts = json.loads(image.text["ldmrt"])
    assert (facts["prompt"], facts["seed"]) == ("", 2)
    assert ldmrt("upscale", made("super-resolution")[1], small, "--steps", 2, "-o", tmp_path / "large.png") == 0
    with Image.open(tmp_path / "large.png") as image:
        assert image.size == (64, 64)
    assert ldmrt("generate", made("ddim-grey")[1], "--steps", 2, "-o", tmp_path / "grey.png") == 0
    assert ldmrt("generate", made("ddpm")[1], "a pear", "--steps", 2, "-o", tmp_path / "none.png") != 0
    assert not (tmp_path / "none.png").exists()
    assert ldmrt("bench", made("improved-ddpm")[1], "--pictures", 1, "--steps", 2) == 0
    for command in ("verify", "inspect", "plan"):
        for name in PLAIN:
            assert ldmrt(command, made(name)[1]) == 0


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("super-resolution", stage(lambda s: s["reads"]["sample"].reverse())),
        ("ldm", stage(lambda s: s["space"].update(codec="none"))),
        ("ddpm", stage(lambda s: s["space"].update(factor=2))),
        ("ddpm", stage(lambda s: s["space"].update(codec="kl"))),
        ("ldm", stage(lambda s: s["space"].update(codec="sum"))),
    ],
)
def test_a_stage_that_cannot_be_is_refused(
    name: str, fault: Callable[[Path], None], made: Make, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(made(name)[1], tmp_path / "bundle"))
    fault(copy)
    list_anew(copy)
    assert ldmrt("generate", copy, "--steps", 1, "-o", tmp_path / "out.png") != 0
    assert not (tmp_path / "out.png").exists()


def scheduler(**changes: Any) -> Callable[[Path], None]:
    """Change the sampler's scheduler."""

    def change(bundle: Path) -> None:
        file = bundle / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("name", "fault", "expected"),
    [
        ("ldm", stage(lambda s: s["space"].update(scaling_factor=0.2)), "scaling factor"),
        ("ddpm", scheduler(clip_sample=False), "scheduler"),
        ("ddim-grey", scheduler(prediction_type="epsilon"), "scheduler"),
        ("improved-ddpm", scheduler(beta_schedule="linear"), "scheduler"),
        ("improved-ddpm", weight("unet", "conv_out.weight", lambda v: np.roll(v, 3, axis=0)), "unet"),  # halves swapped
        ("super-resolution", weight("unet", "conv_in.weight", lambda v: np.roll(v, 3, axis=1)), "unet"),
        ("ldm", weight("vae_decoder", "quantize.embedding.weight", lambda v: np.roll(v, 1, axis=0)), "vae_decoder"),
        ("ldm", inputs("vae_decoder", "quantize/Sub", [1, 0]), "vae_decoder"),  # the code that is farthest
        ("score-sde", scheduler(snr=0.16), "scheduler"),
        ("score-sde", scheduler(correct_steps=2), "scheduler"),
        ("score-sde", scheduler(sigma_max=49.0), "scheduler"),
        ("score-sde", skipped("unet", "Div_2"), "unet"),  # by the noise level
    ],
)
def test_a_fault_is_found_where_it_is(
    name: str, fault: Callable[[Path], None], expected: str, made: Make, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(made(name)[1], tmp_path / "bundle"))
    fault(copy)
    list_anew(copy)
    assert culprit(made(name)[1], made(name)[0]) == ""
    assert culprit(copy, made(name)[0]) == expected


def test_a_small_image_of_another_range_is_found(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """[0, 1] in place of [-1, 1]."""
    assert culprit(*made("super-resolution")[::-1]) == ""
    monkeypatch.setitem(BESIDE, "small_image", lambda context, source: context.colours)  # type: ignore[arg-type]
    assert culprit(*made("super-resolution")[::-1]) == "guidance or conditioning"
