"""Upscale models of every published layout against spandrel, from their files to images; tiles against whole images."""

import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldmrt.model.vision import upscale_model
from ldmrt.model.vision.upscale_model import load_upscale_model
from ldmrt.runtime import InvalidRequest, LdmrtError, NotFinite, UpscaleModel, open_upscaler
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.bundle.graphs import UPSCALER
from ldmrt.runtime.pipeline.autoencoder.upscale_bundle import UpscaleProperties
from ldmrt.runtime.pipeline.autoencoder.upscale_model import padded

from ...tools.conftest import command

if find_spec("spandrel") is None:
    pytest.skip("spandrel is not installed", allow_module_level=True)

from ...support.families.upscale_models import SCALES, by_spandrel, compact, write_all

SIZES = ((1, 1), (1, 40), (37, 1), (23, 50))
# float32 against float32: only the order of sums differs; at most 3e-7 was measured
EXACT = 1e-5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_all(folder)
    return folder


@pytest.fixture(scope="module")
def made(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certified bundle of a network that sees five pixels far."""
    bundle = tmp_path_factory.mktemp("bundles") / "compact"
    assert command("export", files / "compact.pth", bundle) == 0
    return bundle


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)


def tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None] / np.float32(255))


@pytest.mark.parametrize("name", SCALES)
def test_every_layout_is_what_spandrel_reads(files: Path, name: str) -> None:
    model, oracle, image = load_upscale_model(files / name), by_spandrel(files / name), tensor(noise(16, 24))
    assert (model.scale, model.name) == (SCALES[name], Path(name).stem)
    expected = oracle(image)
    torch.testing.assert_close(model.network(image)[0], expected, rtol=0, atol=EXACT)
    assert expected.std() > 0.05  # it is no constant, which any network would equal


def test_old_and_new_names_are_one_network(files: Path) -> None:
    old, new = (load_upscale_model(files / name).network.state_dict() for name in ("4x-old.pth", "4x-new.pth"))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], new[key]) for key in old)


def check_against_spandrel(bundle: Path, file: Path) -> None:
    oracle = by_spandrel(file)
    with open_upscaler(bundle) as model:
        for size in SIZES:
            pixels = noise(*size)
            expected = oracle(tensor(pixels)).numpy()
            found = model.engines[UPSCALER](image=padded(tensor(pixels).numpy(), model.properties))["enlarged"]
            found = found[..., : expected.shape[2], : expected.shape[3]]
            assert np.abs(found - expected).max() <= EXACT * np.abs(expected).max(), size
            levels = np.rint(expected[0].transpose(1, 2, 0) * 255)
            assert (
                np.abs(model.upscale(pixels) - levels).max() <= 1
            )  # a value between two levels may be rounded to either


def test_images_of_any_size(made: Path, files: Path) -> None:
    check_against_spandrel(made, files / "compact.pth")


@pytest.mark.slow(minutes=2)
@pytest.mark.parametrize("name", ["4x-new.pth", "x2plus.pth", "1x.safetensors", "span.pth"])
def test_other_networks(files: Path, tmp_path: Path, name: str) -> None:
    """Pixels that are unshuffled, a scale of 1, and convolutions that are fused."""
    assert command("export", files / name, tmp_path / "bundle") == 0
    check_against_spandrel(tmp_path / "bundle", files / name)


@pytest.mark.parametrize(("multiple", "minimum"), [(1, 2), (4, 4), (8, 40), (16, 0)])
def test_padding_is_spandrels(multiple: int, minimum: int) -> None:
    upscale_model.import_spandrel()
    from spandrel import SizeRequirements
    from spandrel.__helpers.size_req import pad_tensor

    for size in SIZES:
        image = tensor(noise(*size))
        expected = pad_tensor(image, SizeRequirements(minimum, multiple))[1].numpy()
        found = padded(image.numpy(), UpscaleProperties("a", "b", 1, multiple, minimum))
        np.testing.assert_array_equal(found, expected)


def test_tiles_are_the_whole_image_where_overlaps_cover_what_the_network_sees(made: Path) -> None:
    pixels = noise(90, 130)
    with open_upscaler(made) as model:
        whole = model.upscale(pixels)

        def differing(overlap: int, batch: int = 1, tile: int = 48) -> float:
            tiled = UpscaleModel(model.properties, model.engines, tile, overlap, batch).upscale(pixels)
            assert tiled.shape == whole.shape == (360, 520, 3)
            return float((tiled != whole).mean())

        # A quarter of the overlap, 6 pixels, covers the 5 that the network sees: sums of weights round a few levels.
        assert max(differing(24), differing(24, batch=3), differing(21, tile=49)) < 1e-3
        assert differing(4) > 0.01
        steps = list(UpscaleModel(model.properties, model.engines, 48, 24, 4).steps(pixels))
        assert [(step.done, step.total, step.pixels is None) for step in steps][-2:] == [
            (12, 15, True),
            (15, 15, False),
        ]


def test_modes_of_images(made: Path) -> None:
    pixels = noise(9, 14, 4)
    with open_upscaler(made) as model:
        colours = model.upscale(pixels[..., :3])
        image = model(pixels)
        np.testing.assert_array_equal(np.asarray(image)[..., :3], colours)
        alpha = Image.fromarray(pixels[..., 3]).resize((56, 36), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(np.asarray(image)[..., 3], np.asarray(alpha))
        for mode, kept in {"L": "L", "LA": "LA", "P": "RGBA", "1": "L", "I;16": "L", "CMYK": "RGB"}.items():
            given = Image.new("I;16", (14, 9), 7000) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
            assert (model(given).mode, model(given).size) == (kept, (56, 36)), mode
        with pytest.raises(InvalidRequest, match="tiles of this size cannot be laid out"):
            UpscaleModel(model.properties, model.engines, 32, 17)
        with pytest.raises(LdmrtError, match="the image cannot be enlarged"):
            model.upscale(np.zeros((3000, 3000, 3), np.uint8))

        class Broken:
            def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
                return {"enlarged": np.full((1, 3, 36, 56), np.nan, np.float32)}

        with pytest.raises(NotFinite, match="the enlarged image is not finite"):
            UpscaleModel(model.properties, {UPSCALER: Broken()}).upscale(pixels[..., :3])  # type: ignore[dict-item, arg-type]


def changed(change: Callable[[dict[str, Tensor]], object]) -> dict[str, Tensor]:
    """The weights of a network after a change."""
    state = dict(compact().state_dict())
    change(state)
    return state


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("run",)


DAMAGED: dict[str, tuple[Callable[[], object], str]] = {
    "code": (lambda: {"params_ema": Evil()}, "can only be unpickled, which would run its code"),
    "nan": (lambda: changed(lambda state: state["body.1.weight"].fill_(torch.nan)), "is not finite"),
    "lacking": (lambda: changed(lambda state: state.pop("body.2.weight")), "cannot read "),
    "grown": (lambda: changed(lambda state: state.update({"body.0.weight": torch.zeros(1).expand(9999, 3, 99, 99)})),
              "declares more than the file holds"),
    "wide": (lambda: changed(lambda state: state.update({"body.0.weight": torch.zeros(10**6, 3, 1, 1)})),
             "cannot read "),
    "deep": (lambda: changed(lambda state: state.update({"body.999999999.bias": torch.zeros(48)})),
             "is no upscale model"),
    "grey": (lambda: esrgan_of_one_channel(), "3 channels in, 3 out"),
    "nothing": (lambda: {"params_ema": {"body.0.weight": torch.zeros(1)}}, "is no upscale model"),
}  # fmt: skip


def esrgan_of_one_channel() -> dict[str, Tensor]:
    upscale_model.import_spandrel()
    from spandrel.architectures.ESRGAN import ESRGAN

    return dict(ESRGAN(in_nc=1, out_nc=1, num_filters=8, num_blocks=1, scale=2).state_dict())


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_one_clear_error(kind: str, tmp_path: Path, capsys: Any) -> None:
    content, error = DAMAGED[kind]
    torch.save(content(), tmp_path / "model.pth")
    assert command("export", tmp_path / "model.pth", tmp_path / "bundle") == 2
    out, err = capsys.readouterr()
    assert (out, err.count("error: "), "Traceback" in err) == ("", 1, False)
    assert error in err.splitlines()[0]
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_cut_files_and_other_kinds_are_refused(files: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    whole = (files / "compact.pth").read_bytes()
    for name, content in (("cut.pth", whole[: len(whole) // 2]), ("pickle.pth", pickle.dumps({"params_ema": 1}))):
        (tmp_path / name).write_bytes(content)
        assert command("export", tmp_path / name, tmp_path / "bundle") == 2
        assert re.findall("^error: ", capsys.readouterr().err, re.MULTILINE) == ["error: "]
    found = by_spandrel(files / "compact.pth")
    monkeypatch.setattr(found, "scale", 32)
    monkeypatch.setattr(upscale_model, "read_descriptor", lambda path: found)
    assert command("export", files / "compact.pth", tmp_path / "bundle") == 2
    assert "that is not exported; expected a scale of 1 to 16" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_a_network_with_windows_of_attention_is_refused(tmp_path: Path, capsys: Any) -> None:
    """SwinIR's is traced for one number of images: its graph is wrong for any other."""
    upscale_model.import_spandrel()
    from spandrel.architectures.SwinIR import SwinIR

    torch.save(
        SwinIR(img_size=16, window_size=8, embed_dim=12, depths=[2], num_heads=[2]).state_dict(),
        tmp_path / "swinir.pth",
    )
    assert command("export", tmp_path / "swinir.pth", tmp_path / "bundle") == 2
    assert "has an architecture that is not exported; expected ESRGAN or" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow(minutes=0.05)
def test_half_precision_has_its_tolerance(files: Path, tmp_path: Path, capsys: Any) -> None:
    for words in (("--lora", "a.safetensors"), ("--precision", "bf16")):
        assert command("export", files / "compact.pth", tmp_path / "bundle", *words) == 2
    assert "--lora is not for upscale models; expected --precision" in (err := capsys.readouterr().err)
    assert "expected fp32 or fp16" in err
    assert command("export", files / "compact.pth", tmp_path / "bundle", "--precision", "fp16") == 0
    pixels = noise(20, 20)
    with open_upscaler(tmp_path / "bundle") as model:
        expected = by_spandrel(files / "compact.pth")(tensor(pixels))[0].permute(1, 2, 0).numpy()
        assert 0 < np.abs(model.upscale(pixels) / 255 - expected).max() < 1e-2


def test_commands_know_a_bundle_of_one(made: Path, files: Path, tmp_path: Path, capsys: Any) -> None:
    assert command("inspect", made, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["certificate"]["holds"] is True
    assert facts["upscale_model"] == {
        "name": "compact", "architecture": "RealESRGAN Compact", "scale": 4, "multiple": 1, "minimum": 0,
    }  # fmt: skip
    assert command("inspect", made) == 0
    assert "compact: RealESRGAN Compact, 4 times larger" in capsys.readouterr().out
    program = (
        "import sys; sys.modules['torch'] = sys.modules['spandrel'] = None; from ldmrt.tools.cli import main; main()"
    )
    ran = subprocess.run([sys.executable, "-c", program, "verify", str(made)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    shutil.copytree(made, copy := tmp_path / "copy")
    for backend in ("onnxruntime", "openvino"):
        assert command("verify", copy, "--against", files / "compact.pth", "--backend", backend, "--store") == 0
    assert command("verify", made, "--against", files / "span.pth") == 1
    assert "not of this checkpoint: weights of upscaler" in capsys.readouterr().err
    assert command("generate", made, "a cat") == 2
    assert "which draws nothing by itself" in capsys.readouterr().err
    manifest = json.loads((copy / "ldmrt.json").read_text())
    for wrong in ({"scale": 10**9}, {"multiple": 0}, {"minimum": -1}, {"scale": 2}, {"name": ""}, {"scale": True}):
        damaged = {**manifest, "upscale_model": {**manifest["upscale_model"], **wrong}}
        (copy / "ldmrt.json").write_text(json.dumps(damaged))
        assert command("upscale", copy, made) == 2
        with pytest.raises(LdmrtError, match=r"ldmrt\.json is damaged at upscale_model"):
            open_upscaler(copy)


def test_an_image_is_enlarged_by_the_command(made: Path, tmp_path: Path, capsys: Any) -> None:
    Image.fromarray(noise(30, 40, 4)).save(tmp_path / "in.png")
    for suffix, mode in ((".png", "RGBA"), (".webp", "RGBA"), (".jpg", "RGB")):
        out, again = tmp_path / f"out{suffix}", tmp_path / f"again{suffix}"
        assert command("upscale", made, tmp_path / "in.png", "--tile", 24, "--overlap", 8, "-o", out) == 0
        assert (Image.open(out).size, Image.open(out).mode) == ((160, 120), mode)
        assert command("info", out) == 0
        capsys.readouterr()
        assert command("replay", out, "--bundle", made, "-o", again) == 0
        said = capsys.readouterr().out
        assert ("identical: 160x120" in said, "differs" in said) == (True, False)
        assert again.read_bytes() == out.read_bytes()  # its record too
    assert command("upscale", made, tmp_path / "in.png", "--steps", 3) == 2
    assert "--steps is not for upscale models" in capsys.readouterr().err


def test_a_second_pass_goes_through_it(made: Path, bundle: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """It is the first image, enlarged by the model, resized by Lanczos, and drawn from with the same seed."""
    monkeypatch.chdir(tmp_path)
    words = ("--steps", 4, "--seed", 3, "--hires", 2, "--hires-upscaler")
    assert command("generate", bundle, "two pears", *words, made, "-o", "out.png") == 0
    drawn = np.asarray(Image.open("out.png"))
    with open_pipeline(bundle) as pipeline, open_upscaler(made) as model:
        first = pipeline("two pears", num_inference_steps=4, seed=3).images[0]
        larger = model(first).resize((32, 32), Image.Resampling.LANCZOS)
        second = pipeline("two pears", num_inference_steps=4, seed=3, image=larger, strength=0.5)
        both = pipeline("two pears", num_inference_steps=4, seed=3, hires=2, hires_upscaler=model)
    np.testing.assert_array_equal(drawn, second.pixels[0])
    np.testing.assert_array_equal(drawn, both.pixels[0])
    assert "Hires upscaler: compact" in Image.open("out.png").info["parameters"]
    assert command("replay", "out.png", "--bundle", bundle) == 2
    assert "no bundle 'compact' is here" in (err := capsys.readouterr().err)
    assert "--hires-upscaler FOLDER" in err
    assert command("replay", "out.png", "--bundle", bundle, "--hires-upscaler", made) == 0
    assert command("generate", bundle, "two pears", *words, bundle, "-o", "no.png") == 2
    assert "is no upscale model" in capsys.readouterr().err
    assert not Path("no.png").exists()
