"""`ldmrt sweep`: cells that are the images of `ldmrt generate`, the metrics' figures, one clear error."""

import base64
import io
import json
import math
import re
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ldmrt.runtime import open as open_bundle
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.parity.metrics import psnr, ssim
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.tools.console.drawing.images import grid
from ldmrt.tools.console.drawing.sweeping.axes import MOST

from ...support.fakes.small_loras import small_lora

PROMPT = "a red apple, noto style"


def images_in(page: str) -> list[NDArray[np.uint8]]:
    """The images of a page, in its order."""
    encoded = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in encoded]


def test_cells_are_the_images_of_their_requests(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    out, numbers = tmp_path / "sweep.html", tmp_path / "sweep.json"
    words = ["--axis", "steps=2,3", "--axis", "scheduler=ddim,euler", "--axis", "seed=4,5", "--reference", "steps=3"]
    ran = ldmrt("sweep", bundle, PROMPT, *words, "-o", out, "--json", numbers)
    assert (ran.code, ran.out) == (0, f"{out}\n")
    cells = json.loads(numbers.read_text())["cells"]
    named = {tuple(row["cell"].values()): row for row in cells}
    assert [key for key, row in named.items() if row["reference"]] == [("3", "ddim", "4")]
    pipeline = ldmrt_images(bundle)
    expected = {key: pipeline(*key) for key in named}
    on_page = images_in(out.read_text(encoding="utf-8"))
    order = [(steps, name, seed) for seed, steps, name in product("45", "23", ("ddim", "euler"))]  # a table a seed
    for key, image in zip(order, on_page, strict=True):
        np.testing.assert_array_equal(image, expected[key], err_msg=str(key))
    reference = expected["3", "ddim", "4"]
    for key, row in named.items():
        found = psnr(expected[key], reference)
        assert row["psnr"] == ("identical" if math.isinf(found) else found), key
        assert row["ssim"] == ssim(expected[key], reference), key
        assert row["ratio"] == row["seconds"] / named["3", "ddim", "4"]["seconds"]


def ldmrt_images(bundle: Path) -> Any:
    """The image of steps, scheduler and seed, by the library."""
    pipeline = open_bundle(bundle)

    def image(steps: str, scheduler: str, seed: str) -> Any:
        return pipeline(PROMPT, num_inference_steps=int(steps), scheduler=scheduler, seed=int(seed)).pixels[0]

    return image


def test_prompts_sizes_and_several_images(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    out, numbers = tmp_path / "sweep.html", tmp_path / "sweep.json"
    prompts = ["two pears, noto style", "<b> & a fox"]
    axes = [word for prompt in prompts for word in ("--axis", f"prompt={prompt}")] + ["--axis", "width=16,24"]
    ran = ldmrt("sweep", bundle, *axes, "-n", 2, "--steps", 2, "-o", out, "--json", numbers)
    assert ran.code == 0, ran.err
    page = out.read_text(encoding="utf-8")
    assert "prompt &lt;b&gt; &amp; a fox" in page
    assert [image.shape[:2] for image in images_in(page)] == [(16, 34), (16, 50)] * 2  # two, and a gap of two pixels
    assert page.count("another size") == 2
    assert [row["psnr"] is None for row in json.loads(numbers.read_text())["cells"]] == [False, True, False, True]


def test_one_axis_of_bundles_and_backends(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep.html"
    words = ["--axis", f"bundle={bundle},{bundle}", "--steps", 2]
    assert "has a value twice" in ldmrt("sweep", bundle, PROMPT, *words, "-o", out).error
    ran = ldmrt("sweep", bundle, PROMPT, "--axis", "backend=onnxruntime,auto", "--steps", 2, "-o", out)
    assert ran.code == 0, ran.err
    assert out.read_text(encoding="utf-8").count("identical") == 1


def test_bundles_by_guidance(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    """Two bundles are opened one after another, and each cell is what its own draws."""
    other = tmp_path / "other"
    other.symlink_to(bundle)
    out, numbers = tmp_path / "sweep.html", tmp_path / "sweep.json"
    axes = ("--axis", f"bundle={bundle},{other}", "--axis", "guidance=1,3")
    ran = ldmrt("sweep", bundle, PROMPT, *axes, "--steps", 2, "--seed", 4, "-o", out, "--json", numbers)
    assert ran.code == 0, ran.err
    pipeline, images = open_bundle(bundle), images_in(out.read_text(encoding="utf-8"))
    drawn = {scale: pipeline(PROMPT, num_inference_steps=2, guidance_scale=scale, seed=4).pixels[0] for scale in (1, 3)}
    found = {tuple(row["cell"].values()) for row in json.loads(numbers.read_text())["cells"]}
    assert found == {(str(each), scale) for each in (bundle, other) for scale in ("1", "3")}
    assert sorted(image.tobytes() for image in images) == sorted([drawn[1].tobytes(), drawn[3].tobytes()] * 2)
    assert (drawn[1] != drawn[3]).any()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--axis", "stepz=1,2"], "nothing is called 'stepz', did you mean 'steps'?"),
        (["--axis", "steps"], "--axis 'steps' has no values"),
        (["--axis", "steps=2,few"], "--axis steps: 'few' is not a valid"),
        (["--axis", "steps=2,2"], "--axis steps has a value twice"),
        (["--axis", "out=a,b"], "nothing is called 'out'"),
        (["--axis", "steps=2,0"], "of the cell steps=0"),
        (["--axis", "scheduler=ddim,eulr"], "eulr"),
        (["--axis", "steps=2,3", "--reference", "seed=1"], "--reference: no axis is called 'seed'"),
        (["--axis", "steps=2,3", "--reference", "steps=4"], "--reference: '4' is not on the axis steps"),
        (["--axis", "steps=" + ",".join(map(str, range(1, MOST + 2)))], "too many cells"),
        (["--axis", "bundle=nowhere"], "nowhere"),
        (["--axis", "width=64,72,65"], "request of the cell width=65: invalid width"),
        (["--axis", "height=64,70000"], "of the cell height=70000"),
        (["--axis", "scheduler=ddim,ipndm", "--set", "s_churn=1"], "of the cell scheduler=ddim"),
        (["--axis", "noise=ldmrt,torch-cpu", "--scheduler", "dpmpp_sde"], "of the cell noise=torch-cpu"),
        (["--axis", "noise-level=,20"], "of the cell noise-level=20: this model takes no noise_level"),
        (
            ["--axis", "prompt=a.swap(b)", "--axis", "prompt-syntax=plain,compel"],
            "of the cell prompt=a.swap(b), prompt-syntax=compel: .swap() is not supported",
        ),
        (
            ["--axis", "prompt=a", "--axis", "prompt=a<lora:style:1>", "--prompt-syntax", "a1111"],
            "prompt of the cell prompt=a<lora:style:1>: no LoRA 'style' is loaded",
        ),
        (["--axis", "lora=,style.safetensors"], "style.safetensors"),
        (["--axis", "lora=a/style.safetensors,b/style.safetensors"], "two LoRAs have one name"),
        (["--axis", "style=,plain"], "of the cell style=plain: --style without --styles"),
        (["--axis", "precision=fp32,fp16"], "of the cell precision=fp16: auto computes in the precision of the bundle"),
        (["--axis", "precision=fp32", "--axis", "compute=fp32,bf16"], "compute and precision are one option"),
    ],
)
def test_what_cannot_be_drawn_is_said_first(
    ldmrt: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.setattr(Pipeline, "generate", lambda *_: pytest.fail("an image was drawn"))
    out = tmp_path / "sweep.html"
    assert said in ldmrt("sweep", bundle, PROMPT, *words, "-o", out).error
    assert not out.exists()


def test_a_stop_writes_what_is_drawn(ldmrt: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, calls = Pipeline.generate, []

    def until_the_fourth(self: Pipeline, request: Any) -> Any:
        calls.append(request)
        if len(calls) == 4:  # one that is not measured, and two cells
            raise KeyboardInterrupt
        return draw(self, request)

    monkeypatch.setattr(Pipeline, "generate", until_the_fourth)
    out = tmp_path / "sweep.html"
    ran = ldmrt("sweep", bundle, PROMPT, "--axis", "steps=2,3,4", "-o", out)
    assert (ran.code, "stopped: 2 of 3 cells are drawn" in ran.err) == (130, True)
    page = out.read_text(encoding="utf-8")
    assert (len(images_in(page)), page.count("not drawn")) == (2, 1)


def test_a_failure_writes_what_is_drawn(
    ldmrt: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, calls = Pipeline.generate, []

    def failing_last(self: Pipeline, request: Any) -> Any:
        calls.append(request)
        if len(calls) == 4:
            raise LdmrtError("unet", "no more memory")
        return draw(self, request)

    monkeypatch.setattr(Pipeline, "generate", failing_last)
    out = tmp_path / "sweep.html"
    ran = ldmrt("sweep", bundle, PROMPT, "--axis", "steps=2,3,4", "-o", out)
    assert ran.error == "error: unet: no more memory"
    assert "has 2 of 3 cells" in ran.err
    assert len(images_in(out.read_text(encoding="utf-8"))) == 2


def test_an_empty_value_is_none(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    out, numbers = tmp_path / "sweep.html", tmp_path / "sweep.json"
    words = ["--axis", "negative=,two pears, blue", "--axis", "guidance-interval=,0.2,5", "--steps", 2]
    assert ldmrt("sweep", bundle, PROMPT, *words, "-o", out, "--json", numbers).code == 0
    cells = [row["cell"] for row in json.loads(numbers.read_text())["cells"]]
    values = product(("", "two pears, blue"), ("", "0.2,5"))
    assert [tuple(cell.values()) for cell in cells] == list(values)
    assert "negative none" in out.read_text(encoding="utf-8")
    plain = open_bundle(bundle)(PROMPT, num_inference_steps=2).pixels[0]
    np.testing.assert_array_equal(images_in(out.read_text(encoding="utf-8"))[0], plain)


def test_variations_begin_at_none(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep.html"
    words = ["--seed", 3, "--variation-seed", 5, "--axis", "variation-strength=0,0.5", "--steps", 2]
    assert ldmrt("sweep", bundle, PROMPT, *words, "-o", out).code == 0
    first, varied = images_in(out.read_text(encoding="utf-8"))
    plain = open_bundle(bundle)(PROMPT, num_inference_steps=2, seed=3).pixels[0]
    np.testing.assert_array_equal(first, plain)
    assert (varied != plain).any()


@pytest.mark.slow(minutes=0.08)
def test_a_precision_is_what_openvino_computes_in(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from ldmrt.runtime.backends.openvino.devices import precisions

    out, kinds = tmp_path / "sweep.html", [kind for kind in ("fp32", "bf16") if kind in precisions("CPU")]
    words = ["--backend", "openvino", "--axis", f"precision={','.join(kinds)}", "--steps", 2]
    assert ldmrt("sweep", bundle, PROMPT, *words, "-o", out).code == 0
    for kind, image in zip(kinds, images_in(out.read_text(encoding="utf-8")), strict=True):
        drawn = open_bundle(bundle, "openvino", compute=kind)(PROMPT, num_inference_steps=2).pixels[0]
        np.testing.assert_array_equal(image, drawn)


def test_a_deep_cache_is_an_axis(ldmrt: Any, checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    folder, out = Path(shutil.copytree(bundle, tmp_path / "bundle")), tmp_path / "sweep.html"
    assert ldmrt("export", checkpoint, folder, "--deep-cache", "--no-verify").code == 0  # the U-Net is cut, not traced
    ran = ldmrt("sweep", folder, PROMPT, "--axis", "deep-cache=,2,3", "--steps", 4, "-o", out)
    assert ran.code == 0, ran.err
    pipeline, images = open_bundle(folder), images_in(out.read_text(encoding="utf-8"))
    for every, image in zip((None, 2, 3), images, strict=True):
        np.testing.assert_array_equal(image, pipeline(PROMPT, num_inference_steps=4, deep_cache=every).pixels[0])
    assert len({image.tobytes() for image in images}) == 3


def test_loras_are_an_axis_and_images_are_drawn_again(
    ldmrt: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("style", "detail"):
        small_lora(tmp_path / f"{name}.safetensors", seed=len(name))
    (tmp_path / "styles.csv").write_text("name,prompt,negative_prompt\nflat,flat {prompt},shadow\n")
    words = ["--axis", "lora=style.safetensors:0,style.safetensors:0.5", "--axis", "style=,flat", "--steps", 2]
    words += ["--lora", "detail.safetensors:0.3", "--styles", "styles.csv", "-n", 2]
    assert ldmrt("sweep", bundle, PROMPT, *words, "-o", "sweep.html").code == 0
    page = Path("sweep.html").read_text(encoding="utf-8")
    assert "detail.safetensors:0.3" in page
    found = images_in(page)
    with open_bundle(bundle) as pipeline:
        for name in ("style", "detail"):
            pipeline.load_lora(f"{name}.safetensors")
        for image, (weight, styled) in zip(found, product((0.0, 0.5), (False, True)), strict=True):
            prompt, negative = (f"flat {PROMPT}", "shadow") if styled else (PROMPT, None)
            drawn = pipeline(
                prompt, negative_prompt=negative, num_inference_steps=2, num_images_per_prompt=2,
                loras={"detail": 0.3, "style": weight},
            )  # fmt: skip
            np.testing.assert_array_equal(image, grid(drawn.pixels, 2))
    files = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    (tmp_path / "cell.png").write_bytes(base64.b64decode(files[-1]))
    again = ldmrt("replay", "cell.png", "--bundle", bundle)
    assert (again.code, again.out.startswith("identical")) == (0, True), again.err


def test_the_image_of_a_cell_is_drawn_again(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    words = ["--axis", "scheduler=,dpmpp_2m_sde", "--set", "timestep_spacing=trailing", "--steps", 2, "--seed", 4]
    assert ldmrt("sweep", bundle, PROMPT, *words, "-o", tmp_path / "sweep.html").code == 0
    page = (tmp_path / "sweep.html").read_text(encoding="utf-8")
    (tmp_path / "cell.png").write_bytes(base64.b64decode(re.findall(r'base64,([^"]+)"', page)[-1]))
    again = ldmrt("replay", tmp_path / "cell.png", "--bundle", bundle)
    assert (again.code, again.out.startswith("identical")) == (0, True), again.err
    assert Image.open(tmp_path / "cell.png").info["parameters"].startswith(f"{PROMPT}\n")


def test_values_with_commas_and_no_text(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep.html"
    axes = ["--axis", "negative=", "--axis", "negative=two pears, blue", "--axis", "guidance-interval=0.1,0.5"]
    ran = ldmrt("sweep", bundle, PROMPT, *axes, "--axis", "guidance-interval=0.2,5", "--steps", 2, "-o", out)
    assert ran.code == 0, ran.err
    assert len(images_in(out.read_text(encoding="utf-8"))) == 4
