"""`ldmrt replay` draws an image of ldmrt again, from the record in its file alone."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldmrt.runtime import Request
from ldmrt.serve.http.images import encoded
from ldmrt.serve.jobs.service import Service
from ldmrt.serve.models.loras import open_with_loras
from ldmrt.serve.models.models import fixed

from ...support.fakes.small_loras import small_lora

PROMPT = "two pears"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two images to start from, and a mask."""
    rng = np.random.default_rng(0)
    for name in ("in", "other"):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / f"{name}.png")
    Image.fromarray(np.uint8(255) * np.tile(np.arange(16) > 7, (16, 1))).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


WORDS: dict[str, tuple[Any, ...]] = {
    "plain": (),
    "sampler": ("--scheduler", "euler_a", "--eta", 0.5, "--set", "timestep_spacing=trailing", "--seed", 2**64 - 5),
    "noise": ("--noise", "torch-cpu", "--scheduler", "euler_a", "--guidance", 1.0),
    "image": ("--image", "in.png", "--strength", 0.5, "--mask", "mask.png", "--negative", "blurred, grey"),
    "outpaint": ("--image", "in.png", "--outpaint", "0,0,0,6", "--feather", 3, "--mask-content", "noise"),
    "variation": ("--seed", 3, "--variation-seed", 9, "--variation-strength", 0.3, "--noise", "torch-cpu"),
    "hires": ("--width", 8, "--height", 8, "--hires", 2, "--hires-steps", 4, "--hires-upscaler", "pixel", "--seed", 3),
    "schedule": ("--prompt-syntax", "a1111", "--width", 8, "--height", 8, "--hires", 2),
    "tiles": ("--width", 32, "--tile", 16, "--threads", 1, "--guidance-interval", "0.1,5"),
}


@pytest.mark.parametrize(("name", "suffix"), [*((name, "png") for name in WORDS), ("image", "jpg"), ("plain", "webp")])
def test_an_image_is_drawn_again_bit_for_bit(ldmrt: Any, bundle: Path, place: Path, name: str, suffix: str) -> None:
    prompt = "[a red apple:two pears:1.5]" if name == "schedule" else PROMPT
    assert ldmrt("generate", bundle, prompt, "--steps", 3, *WORDS[name], "-o", f"a.{suffix}").code == 0
    ran = ldmrt("replay", f"a.{suffix}", "--bundle", bundle, "-o", f"b.{suffix}")
    width, height = 32 if name == "tiles" else 16, 22 if name == "outpaint" else 16
    size = width * height * 3
    assert (ran.code, "differs" in ran.out) == (0, False), ran.err
    assert f"identical: {width}x{height}, all {size} bytes of pixels\n" in ran.out
    assert Path(f"b.{suffix}").read_bytes() == Path(f"a.{suffix}").read_bytes()  # its record too


def test_each_of_several_images_is_drawn_again_alone(ldmrt: Any, bundle: Path, place: Path) -> None:
    prompts = (PROMPT, "a red apple")
    images = ("--image", "in.png", "--image", "other.png")
    assert ldmrt("generate", bundle, *prompts, "-n", 2, "--steps", 2, *images, "-o", "a.png").code == 0
    for number in range(4):
        assert ldmrt("replay", f"a-{number:02d}.png", "--bundle", bundle).code == 0


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_grid_is_drawn_again(ldmrt: Any, bundle: Path, place: Path, suffix: str) -> None:
    """What its images share, and what each of them has of its own: files, seeds of variations, places of latents."""
    np.save("noise.npy", np.random.default_rng(0).standard_normal((3, 4, 8, 8), np.float32))
    words: dict[str, tuple[Any, ...]] = {
        "plain": (PROMPT, "a red apple", "-n", 2, "--columns", 3),
        "images": (PROMPT, "a red apple", "--image", "in.png", "--image", "other.png", "--mask", "mask.png"),
        "variations": (PROMPT, "-n", 3, "--variation-seed", 9, "--variation-strength", 0.3, "--negative", "grey"),
        "latents": (PROMPT, "-n", 3, "--latents", "noise.npy"),
    }
    for name, own in words.items():
        out = f"{name}.{suffix}"
        assert ldmrt("generate", bundle, *own, "--steps", 2, "-o", out).code == 0
        ran = ldmrt("replay", out, "--bundle", bundle, "-o", f"again.{suffix}", "--overwrite")
        assert (ran.code, "identical" in ran.out, "differs" in ran.out) == (0, True, False), ran.err
        assert Path(f"again.{suffix}").read_bytes() == Path(out).read_bytes()  # its record too


def test_what_a_refiner_ended_is_drawn_again(ldmrt: Any, bundle: Path, place: Path) -> None:
    (place / "second").symlink_to(bundle)
    words = ("--refiner", "second", "--refiner-start", 0.5, "--steps", 4, "--scheduler", "ddim")
    assert ldmrt("generate", bundle, PROMPT, "a red apple", *words, "-o", "a.png").code == 0
    for file in ("a.png", "a-01.png"):
        ran = ldmrt("replay", file, "--bundle", bundle, "-o", f"again-{file}")
        assert (ran.code, "differs" in ran.out) == (0, False), ran.err
        assert Path(f"again-{file}").read_bytes() == Path(file).read_bytes()
    (place / "second").rename("moved")
    ran = ldmrt("replay", "a-01.png", "--bundle", bundle)
    assert (ran.code, "no bundle 'second' is here" in ran.error, "--refiner FOLDER" in ran.err) == (2, True, True)
    assert ldmrt("replay", "a-01.png", "--bundle", bundle, "--refiner", "moved").code == 0

    def other(said: Any, pixels: Any) -> Any:
        said["made"]["refiner"]["bundle_sha256"] = "0" * 64
        return pixels

    changed(place / "a-01.png", other)
    assert "bundle_sha256 of the refiner" in ldmrt("replay", "a-01.png", "--bundle", bundle, "--refiner", "moved").out


def served(bundle: Path, out: Path, files: dict[str, Path], **asked: Any) -> None:
    """Write the first image that a service draws of a request, as a server sends it."""
    opened = open_with_loras(str(bundle), files=files, any_fits=False, backend="auto", safety="on")
    with contextlib.closing(fixed({bundle.name: opened}, {bundle.name: 8})) as models:
        service = Service(models)
        jobs = [service.submit(Request(PROMPT, num_inference_steps=3, **asked)) for _ in range(2)]
        out.write_bytes(next(encoded(job, 0) for job in jobs if job.result(60)))
        service.close()


@pytest.mark.filterwarnings("ignore:.*it has no parity certificate")
def test_what_a_server_has_drawn_is_drawn_again(ldmrt: Any, bundle: Path, place: Path) -> None:
    loras = {name: small_lora(place / f"{name}.safetensors", seed) for seed, name in enumerate(("oil", "ink"))}
    asked = {"seed": [5, 9], "num_images_per_prompt": 2, "loras": {"oil": 0.5}, "noise": "torch-cpu"}
    served(bundle, place / "a.png", loras, scheduler="euler_a", negative_prompt="grey", **asked)
    (place / "ink.safetensors").unlink()  # which the image was not drawn with
    ran = ldmrt("replay", "a.png", "--bundle", bundle)
    assert (ran.code, "identical" in ran.out) == (0, True), ran.err
    image = Image.fromarray(np.zeros((16, 16, 3), np.uint8))
    served(bundle, place / "b.png", {}, image=image, strength=0.5)
    ran = ldmrt("replay", "b.png", "--bundle", bundle)
    assert (ran.code, "b.png was drawn from an image that a server was sent" in ran.error) == (2, True)


def test_a_line_of_a_batch_is_drawn_again(ldmrt: Any, bundle: Path, place: Path) -> None:
    line = {"prompt": PROMPT, "steps": 2, "seed": 5, "image": "in.png", "scheduler": "ddim", "eta": 1.0}
    Path("lines.jsonl").write_text(json.dumps(line) + "\n")
    assert ldmrt("batch", bundle, "lines.jsonl", "out").code == 0
    assert ldmrt("replay", "out/000/000/000001-0.png", "--bundle", bundle).code == 0


def test_a_bundle_is_found_by_its_name(ldmrt: Any, bundle: Path, place: Path) -> None:
    assert ldmrt("generate", bundle, PROMPT, "--steps", 2, "-o", "a.png").code == 0
    ran = ldmrt("replay", "a.png")
    assert (ran.code, f"no bundle '{bundle.name}' is here" in ran.error) == (2, True)
    (place / "out").mkdir()
    (place / "out" / bundle.name).symlink_to(bundle)
    assert ldmrt("replay", "a.png").code == 0


def changed(path: Path, change: Any) -> None:
    """Write a file's parameters anew, and its pixels too where a function returns them."""
    with Image.open(path) as image:
        pixels, said = np.array(image), json.loads(image.info["ldmrt"])
    pixels = change(said, pixels)
    info = PngInfo()
    info.add_itxt("ldmrt", json.dumps(said))
    Image.fromarray(pixels).save(path, pnginfo=info)


def test_what_differs_is_listed(ldmrt: Any, bundle: Path, place: Path) -> None:
    def other(said: Any, pixels: Any) -> Any:
        said["made"]["bundle_sha256"] = "0" * 64
        said["made"]["versions"]["numpy"] = "1.0"
        pixels[0, 0, 0] ^= 1
        return pixels

    assert ldmrt("generate", bundle, PROMPT, "--steps", 2, "-o", "a.png").code == 0
    changed(place / "a.png", other)
    ran = ldmrt("replay", "a.png", "--bundle", bundle)
    assert ran.code == 1
    assert all(word in ran.out for word in ("bundle_sha256", "0000", "version of numpy", "1.0", np.__version__))
    # one bit of one byte: the mean square is 1 / 768
    assert "not identical: 16x16, 1 of 768 bytes of pixels differ, PSNR 77.0 dB\n" in ran.out


@pytest.mark.parametrize("side", [8, 32])  # the larger is refused before it is drawn
def test_a_bundle_of_another_size_is_named_as_what_differs(ldmrt: Any, bundle: Path, place: Path, side: int) -> None:
    def other(said: Any, pixels: Any) -> Any:
        said["made"]["bundle_sha256"] = "0" * 64
        return pixels

    assert ldmrt("generate", bundle, PROMPT, "--steps", 2, "-o", "a.png").code == 0
    now = json.loads(ldmrt("info", "a.png", "--json").out)[0]["parameters"]["made"]["bundle_sha256"]
    changed(place / "a.png", other)
    manifest = Path(shutil.copytree(bundle, "sized")) / "ldmrt.json"
    said = json.loads(manifest.read_text())
    said["stages"][0]["own"] = [side, side]
    manifest.write_text(json.dumps(said))
    ran = ldmrt("replay", "a.png", "--bundle", "sized", "-o", "b.png")
    expected = f"bundle_sha256 {'0' * 64} and 16x16; found bundle_sha256 {now} and {side}x{side}"
    problem = "a.png was drawn by another bundle than sized, which draws another size"
    assert (ran.code, f"{problem}; expected {expected}" in ran.error) == (2, True), ran.error
    assert not Path("b.png").exists()


def test_inputs_have_to_be_what_they_were(ldmrt: Any, bundle: Path, place: Path) -> None:
    assert ldmrt("generate", bundle, PROMPT, "--steps", 2, "--image", "in.png", "-o", "a.png").code == 0
    (place / "kept").mkdir()
    shutil.move("in.png", "kept/in.png")
    ran = ldmrt("replay", "a.png", "--bundle", bundle)
    assert (ran.code, "in.png is gone, which the image was drawn from" in ran.error) == (2, True)
    assert ldmrt("replay", "a.png", "--bundle", bundle, "--inputs", "kept").code == 0
    shutil.copy("other.png", "in.png")
    ran = ldmrt("replay", "a.png", "--bundle", bundle)
    assert (ran.code, "in.png is not the file that the image was drawn from" in ran.error) == (2, True)


def no_record(said: Any, pixels: Any) -> Any:
    del said["made"]
    return pixels


def old_refiner(said: Any, pixels: Any) -> Any:
    said["made"]["refiner"] = "sdxl-refiner"
    return pixels


def no_start(said: Any, pixels: Any) -> Any:
    said["made"]["refiner"] = {"bundle": "sdxl-refiner"}
    return pixels


def old_grid(said: Any, pixels: Any) -> Any:
    said |= {"seeds": [0, 1], "prompts": [PROMPT, PROMPT]}
    del said["made"]
    return pixels


def narrow_grid(said: Any, pixels: Any) -> Any:
    said |= {"seeds": [0, 1], "prompts": [PROMPT, PROMPT]}
    said["made"]["grid"] = {"columns": 2}
    return pixels


def no_columns(said: Any, pixels: Any) -> Any:
    narrow_grid(said, pixels)
    said["made"]["grid"] = {"columns": 10**9}
    return pixels


def few_of_each(said: Any, pixels: Any) -> Any:
    narrow_grid(said, pixels)
    said["made"]["grid"]["each"] = [{}]
    return pixels


def damaged(said: Any, pixels: Any) -> Any:
    said["made"]["request"] = {"steps": "three"}
    return pixels


def unknown(said: Any, pixels: Any) -> Any:
    said["made"]["opening"] = {"wings": 2}
    return pixels


def odd_threads(said: Any, pixels: Any) -> Any:
    said["made"]["opening"] = {"threads": "many"}
    return pixels


def two_prompts(said: Any, pixels: Any) -> Any:
    said["prompt"] = [PROMPT, "a fox"]
    return pixels


def huge(said: Any, pixels: Any) -> Any:
    said["made"]["request"] |= {"width": 8192, "height": 8192}
    return pixels


def elsewhere(said: Any, pixels: Any) -> Any:
    said["made"]["request"]["image"] = "in.png"  # which no hash is of
    return pixels


def half_a_character(said: Any, pixels: Any) -> Any:
    said["note"] = "\ud800"
    return pixels


def smaller(said: Any, pixels: Any) -> Any:
    return pixels[:8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_record, "a.png lacks the record to draw it by"),
        (old_refiner, "a.png was drawn with a refiner; expected the record of a later version of ldmrt"),
        (no_start, "a.png has a damaged record"),
        (old_grid, "a.png is a grid of several images, without their record"),
        (narrow_grid, "a.png has another size than its record; expected 34x16; found 16x16"),
        (no_columns, "a.png has a damaged record"),
        (few_of_each, "a.png has a damaged record"),
        (damaged, "a.png has a damaged record"),
        (unknown, "a.png has a damaged record"),
        (odd_threads, "a.png has a damaged record"),
        (two_prompts, "a.png has a damaged record"),
        (huge, "a.png has another size than its record; expected 8192x8192; found 16x16"),
        (elsewhere, "a.png has a damaged record"),
        (half_a_character, "a.png has a damaged record"),
        (smaller, "a.png has another size than its record; expected 16x16; found 16x8"),
    ],
)
def test_what_cannot_be_drawn_again_is_refused(
    ldmrt: Any, bundle: Path, place: Path, change: Any, message: str
) -> None:
    assert ldmrt("generate", bundle, PROMPT, "--steps", 2, "-o", "a.png").code == 0
    changed(place / "a.png", change)
    ran = ldmrt("replay", "a.png", "--bundle", bundle, "-o", "b.png")
    assert (ran.code, message in ran.error) == (2, True), ran.error
    assert not Path("b.png").exists()
