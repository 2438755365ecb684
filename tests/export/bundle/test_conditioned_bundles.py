"""Bundles of models that are told more than a prompt: certified, run from the command line, and their faults found."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.export.parity.record import record
from ldmrt.model import load
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.recording import Recording
from ldmrt.runtime.parity.certify import certify
from ldmrt.runtime.parity.compare import compare
from ldmrt.runtime.parity.tolerances import tolerances
from ldmrt.tools.cli import cli

from ...conftest import sharing
from ...runtime.bundle.test_bundle_paths import edit, list_anew
from ...support.families import CONDITIONED
from ...support.pipelines import save_pipeline
from ..families.test_stable_diffusion import STEPS, close, picture
from .test_conditioned import TOLD

pytestmark = pytest.mark.slow(minutes=0.2)  # three bundles


def ldmrt(*words: object) -> int:
    """Run a command in this process and return its exit code."""
    from click.testing import CliRunner

    from ldmrt.runtime.errors import LdmrtError

    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, (SystemExit, LdmrtError)), result.exception
    return result.exit_code


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, export_once: Any) -> Callable[[str], tuple[Path, Path]]:
    """The checkpoint and the certified bundle of a family, made once."""
    done: dict[str, tuple[Path, Path]] = {}

    def make(name: str) -> tuple[Path, Path]:
        if name not in done:
            root = tmp_path_factory.mktemp(name)
            checkpoint = save_pipeline(name, root / "checkpoint")
            with sharing(export_once):
                assert ldmrt("export", checkpoint, root / "bundle", "--no-verify") == 0
            verify = ("verify", root / "bundle", "--against", checkpoint, "--store", "--backend", "onnxruntime")
            assert ldmrt(*verify) == 0
            done[name] = checkpoint, root / "bundle"
        return done[name]

    return make


@pytest.mark.usefixtures("row_by_row")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", CONDITIONED)
def test_bundle_draws_what_its_checkpoint_draws(
    name: str, backend: str, made: Callable[[str], tuple[Path, Path]]
) -> None:
    """Also with an image of an odd size, and with one stage in memory at a time, on one row."""
    checkpoint, bundle = made(name)
    asked: dict[str, Any] = {"num_inference_steps": STEPS, "num_images_per_prompt": 3, "guidance_scale": 4.0}
    asked |= {"image": picture(18).resize((22, 18))} if "image" in TOLD[name] else TOLD[name]
    expected = torch_pipeline(load(checkpoint))("two pears", **asked)
    for low_memory in (False, True):
        with open_pipeline(bundle, backend, low_memory=low_memory) as pipeline:
            found = pipeline("two pears", **asked)
        close(found.latents, expected.latents)
        assert (found.depth is None) is ("ldm3d" not in name)
        assert np.abs(found.pixels.astype(int) - expected.pixels).max() <= 1  # a rounding


def test_commands(made: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    small, out = tmp_path / "small.png", tmp_path / "out.png"
    picture(16).save(small)
    assert ldmrt("upscale", made("upscaler")[1], small, "--steps", 2, "--noise-level", 5, "--seed", 7, "-o", out) == 0
    with Image.open(out) as image:
        assert image.size == (64, 64)
        facts = json.loads(image.text["ldmrt"])
    assert (facts["noise_level"], facts["image"], facts["width"], facts["seed"]) == (5, "small.png", 64, 7)
    edited = ("generate", made("pix2pix")[1], "a pear", "--image", small, "--image-guidance", 2.0, "--steps", 2)
    assert ldmrt(*edited, "-o", tmp_path / "edited.png") == 0
    drawn = ("generate", made("classes")[1], "a pear", "a cat", "--class", 1, "--class", 4, "--steps", 2)
    assert ldmrt(*drawn, "-o", tmp_path / "drawn.png") == 0
    deep = ("generate", made("ldm3d")[1], "a pear", "a cat", "--steps", 2, "-o", tmp_path / "deep.jpg")
    assert ldmrt(*deep) == 0
    with Image.open(tmp_path / "deep-01-depth.png") as image:
        assert (image.mode, image.size) == ("I;16", (16, 16))
    assert ldmrt(*deep) == 0  # no file is written over
    assert (tmp_path / "deep_2-00-depth.png").exists()
    assert ldmrt("upscale", made("classes")[1], small, "-o", tmp_path / "none.png") != 0
    assert not (tmp_path / "none.png").exists()


def scheduler(**changes: Any) -> Callable[[Path], None]:
    """Change the scheduler that adds noise to the small image."""

    def change(bundle: Path) -> None:
        file = bundle / "low_res_scheduler" / "scheduler_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def stage(change: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda bundle: edit(bundle, lambda manifest: change(manifest["stages"][0]))


@cache
def recorded(checkpoint: Path) -> Recording:
    return record(load(checkpoint), "a red apple")


def culprit(bundle: Path, checkpoint: Path) -> str:
    """Measure a bundle against its checkpoint, each network alone too."""
    opened, reference = Bundle.open(bundle, check=False), recorded(checkpoint)
    with open_pipeline(bundle, "onnxruntime", check=False) as pipeline:
        measured = list(compare(pipeline, "onnxruntime", reference, tolerances(opened)))
    certificate = certify(measured, opened, reference)
    assert certificate.within is (not certificate.culprit)
    return certificate.culprit


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("upscaler", scheduler(beta_start=0.0003)),
        ("upscaler", stage(lambda s: s["guide"].update(rows=s["guide"]["rows"][::-1]))),
        ("pix2pix", stage(lambda s: s["guide"]["rows"][0].update(blank=[]))),
        ("pix2pix", stage(lambda s: s["guide"].update(scales=s["guide"]["scales"][::-1]))),
        ("pix2pix", stage(lambda s: s["guide"]["rows"][1].update(prompt="positive"))),
    ],
)
def test_a_fault_is_found_where_it_is(
    name: str, fault: Callable[[Path], None], made: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    """Each network is right, so the rows blame what it is given."""
    copy = Path(shutil.copytree(made(name)[1], tmp_path / "bundle"))
    fault(copy)
    list_anew(copy)
    assert culprit(copy, made(name)[0]) == "guidance or conditioning"


def test_a_noise_level_that_is_off_by_one_is_found(
    made: Callable[[str], tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert culprit(*made("upscaler")[::-1]) == ""
    monkeypatch.setattr("ldmrt.runtime.pipeline.conditioning.context.NOISE_LEVEL", 21)
    assert culprit(*made("upscaler")[::-1]) == "guidance or conditioning"
