"""`ldmrt generate` where images are drawn in parts, or by two models."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ldmrt.runtime
from ldmrt.export.bundle_writer import export_bundle
from ldmrt.model import load
from ldmrt.runtime import Bundle, LdmrtError, RefinedPipeline, Request, host
from ldmrt.runtime.backends import gpu
from ldmrt.runtime.backends.openvino.ranges import stored_in, to_bytes, with_ranges
from ldmrt.runtime.bundle.coverage import manifest_digest
from ldmrt.runtime.bundle.engines.engine_key import Range
from ldmrt.runtime.bundle.manifest import check_manifest
from ldmrt.runtime.pipeline import batch_size
from ldmrt.runtime.pipeline.batch_size import Forecast, images_at_once

from ..conftest import Ran, command

PROMPT = "a red apple, noto style, blue background"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_refiner_ends_what_the_base_begins(bundle: Path, tmp_path: Path) -> None:
    """With a sampler that remembers nothing, and one bundle as both, it is as if there were one."""
    asked = ("generate", bundle, PROMPT, "-n", "2", "--steps", "6", "--scheduler", "ddim", "--seed", "3")
    assert command(*asked, "-o", tmp_path / "one.png") == 0
    for batch in ("auto", "1"):
        both = ("--refiner", bundle, "--refiner-start", "0.5", "--batch", batch)
        assert command(*asked, *both, "-o", tmp_path / "two.png") == 0
        # ONNX Runtime may order its sums by batch size: rounding, which can tip one grey level
        assert np.abs(pixels(tmp_path / "one.png").astype(int) - pixels(tmp_path / "two.png")).max() <= 1
    assert '"refiner_start": 0.5' in Image.open(tmp_path / "two.png").text["ldmrt"]  # type: ignore[attr-defined]


def test_latents_are_left_and_taken_up_again(bundle: Path, tmp_path: Path) -> None:
    asked = ("generate", bundle, PROMPT, "--steps", "6", "--scheduler", "ddim", "--seed", "3")
    assert command(*asked, "-o", tmp_path / "whole.png") == 0
    end = ("--denoising-end", "0.5", "--save-latents")
    assert command(*asked, *end, "-o", tmp_path / "left.png") == 0
    start = ("--denoising-start", "0.5", "--latents", tmp_path / "left.npy")
    assert command(*asked, *start, "-o", tmp_path / "taken.png") == 0
    np.testing.assert_array_equal(pixels(tmp_path / "taken.png"), pixels(tmp_path / "whole.png"))


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--refiner-start", "1.5"], "refiner: invalid start; expected above 0, below 1; found 1.5"),
        (["--refiner-start", "nan"], "refiner: invalid start"),
        (["--refiner-start", "0.001"], "denoising_end leaves no step"),
    ],
)
def test_a_start_that_cannot_be_is_refused(
    words: list[str], error: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = command("generate", bundle, "x", "--steps", "4", "--refiner", bundle, *words, "-o", tmp_path / "a.png")
    assert error in Ran(code, *capsys.readouterr()).error
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00\x02\x00{}"])
def test_what_is_no_npy_file_is_refused(
    content: bytes, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.npy").write_bytes(content)
    code = command("generate", bundle, "x", "--latents", tmp_path / "bad.npy", "-o", tmp_path / "a.png")
    assert "generate: cannot read" in Ran(code, *capsys.readouterr()).error


def test_more_images_than_fit_are_drawn_in_parts(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("generate", bundle, PROMPT, "-n", "5", "--steps", "2", "-o", tmp_path / "whole.png") == 0
    monkeypatch.setattr(batch_size, "PIXELS", 2 * 16 * 16)
    seen: list[int] = []
    begin: Callable[..., object] = ldmrt.runtime.Pipeline._encode

    def noted(self: ldmrt.runtime.Pipeline, request: Request) -> object:
        seen.append(request.total_images)
        return begin(self, request)

    monkeypatch.setattr(ldmrt.runtime.Pipeline, "_encode", noted)
    assert command("generate", bundle, PROMPT, "-n", "5", "--steps", "2", "-o", tmp_path / "parts.png") == 0
    assert seen == [2, 2, 1]
    assert np.abs(pixels(tmp_path / "whole.png").astype(int) - pixels(tmp_path / "parts.png")).max() <= 1
    with ldmrt.runtime.open(bundle, "onnxruntime", check=False) as pipeline:
        result = pipeline(PROMPT, num_images_per_prompt=5, num_inference_steps=2)
        assert result.pixels.shape == (5, 16, 16, 3)
        assert result.seeds == [0, 1, 2, 3, 4]
        assert seen[3:] == [2, 2, 1]
        for call in (pipeline, pipeline.prepare):
            with pytest.raises(
                LdmrtError, match="too many images for one call; expected at most 65536; found 10000000"
            ):
                call(Request(PROMPT, num_images_per_prompt=10**9, num_inference_steps=2))
        drawn = pipeline.draw(Request(PROMPT, num_images_per_prompt=10**9, num_inference_steps=1).parts(2))
        assert next(drawn).seeds == [0, 1]
        drawn.close()


def test_as_many_as_engines_were_built_for() -> None:
    def bucket(most: int, name: str = "sample") -> dict[str, Range]:
        return {name: Range((1, 4, 32, 32), (2, 4, 64, 64), (most, 4, 64, 96))}

    profiles = [("unet", bucket(8)), ("unet", bucket(4)), ("step", bucket(6, "state"))]
    assert images_at_once(profiles[:2], (512, 768), 8, rows=2) == 4
    assert images_at_once(profiles[:2], (512, 768), 8, rows=1) == 8
    assert images_at_once(profiles, (512, 512), 8, rows=2) == 6
    assert images_at_once(profiles, (1024, 1024), 8, rows=2) == 4  # of no engine: by their pixels
    assert images_at_once([], (64, 64), 8, rows=2) == 1024
    assert images_at_once([], (8192, 8192), 8, rows=2) == 1


def test_a_refiner_of_other_latents_is_refused(bundle: Path) -> None:
    from dataclasses import replace

    pipeline = ldmrt.runtime.open(bundle, "onnxruntime", check=False)
    stage = pipeline.stage
    other = replace(pipeline, stage=replace(stage, space=replace(stage.space, channels=16)))
    with pytest.raises(LdmrtError, match="its latents are not the base's: another channels; expected 4; found 16"):
        RefinedPipeline(pipeline, other)
    pipeline.close()


def test_as_many_as_fit_in_memory() -> None:
    forecast = Forecast(free=10e9, per_pixel=4000.0, per_pixel_squared=0.01)
    size, each = (512, 512), 512 * 512 * (4000.0 + 0.01 * 512 * 512)
    assert images_at_once([], size, 8, rows=2, forecast=forecast) == int(10e9 / (2 * each)) == 2
    assert images_at_once([], size, 8, rows=1, forecast=forecast) == 5
    assert images_at_once([], (64, 64), 8, rows=2, forecast=Forecast(1e15, 4000.0, 0.0)) == 1024
    assert images_at_once([], size, 8, rows=2, forecast=Forecast(0.0, 4000.0, 0.0)) == 1
    profile = {"sample": Range((1, 4, 32, 32), (2, 4, 64, 64), (8, 4, 64, 96))}
    assert images_at_once([("unet", profile)], size, 8, rows=2, forecast=forecast) == 4


@pytest.mark.parametrize(("backend", "where"), [("onnxruntime", host), ("onnxruntime-cuda", gpu)])
def test_free_memory_is_divided_by_what_an_image_takes(
    backend: str, where: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = ldmrt.runtime.Bundle.open(bundle)
    weights = sum(path.stat().st_size for path in bundle.glob("*/model.onnx_data"))
    predicted = opened.manifest["memory"]
    each = 2 * 256 * (predicted["per_pixel"] + 256 * predicted["per_pixel_squared"])
    monkeypatch.setattr(where, "free_memory", lambda: int(weights + 2 * 3.75 * each))
    with ldmrt.runtime.open(bundle, "onnxruntime", check=False) as pipeline:
        pipeline = replace(pipeline, forecast=Forecast.read(opened, backend))
        assert pipeline.images_at_once(Request(PROMPT)) == 3
        assert pipeline.images_at_once(Request(PROMPT, guidance_scale=1.0)) == 7
    monkeypatch.setattr(where, "free_memory", lambda: None)
    assert Forecast.read(opened, backend) is None


def test_a_bundle_without_a_prediction_keeps_its_certificate(bundle: Path, tmp_path: Path) -> None:
    """It was exported before there was one."""
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    manifest = json.loads((copy / "ldmrt.json").read_text())
    digest = manifest_digest(manifest)
    del manifest["memory"]
    assert manifest_digest(manifest) == digest
    (copy / "ldmrt.json").write_text(json.dumps(manifest))
    with ldmrt.runtime.open(copy, "onnxruntime") as pipeline:
        assert pipeline.forecast is None
        assert pipeline.images_at_once(Request(PROMPT)) == batch_size.PIXELS // 256


def test_an_export_that_changes_nothing_keeps_ranges_and_certificate(
    certified: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """The ranges of int8 are a file of the bundle that no checkpoint has."""
    copy = Path(shutil.copytree(certified, tmp_path / "copy"))
    content = to_bytes({})
    listed = with_ranges(Bundle.open(copy), content).manifest
    name = stored_in(listed)
    assert name is not None
    (copy / name).write_bytes(content)
    (copy / "ldmrt.json").write_text(json.dumps(listed))
    for _ in export_bundle(load(checkpoint), copy):
        pass
    opened = Bundle.open(copy)
    assert opened.certificate is not None
    assert stored_in(opened.manifest) == name
    assert (copy / name).read_bytes() == content


@pytest.mark.parametrize("memory", [[], {"per_pixel": -1}, {"per_pixel": "1"}, {"per_pixel": True}, None])
def test_a_prediction_that_is_none_is_refused(memory: object, bundle: Path) -> None:
    manifest = json.loads((bundle / "ldmrt.json").read_text()) | {"memory": memory}
    with pytest.raises(LdmrtError, match=r"ldmrt\.json is damaged at memory; expected numbers of bytes"):
        check_manifest(manifest)
