"""What the file of an image says of it: ours to the readers of others, and that of others to ours.

The public sd-parsers is the other reader.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldmrt.runtime.pipeline.infotext.hires import hires_fields
from ldmrt.runtime.pipeline.infotext.text import Infotext, names_of, read_infotext

PROMPT = 'two pears, "ripe": 3\nand a café 🍐'
NEGATIVE = "blurred, grey"
GREY = Image.new("RGB", (8, 8), "grey")
INFOTEXT = (
    "a cat, (masterpiece:1.2)\nSteps: none\nNegative prompt: dog\nugly\n"
    "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 42, Size: 512x768, "
    'Model hash: 0123456789, Model: v1-5, Lora hashes: "a: b, c: d", Version: v1.10.1'
)
COMFYUI = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 7, "steps": 25, "cfg": 6.5, "sampler_name": "euler", "scheduler": "karras", "denoise": 1.0,
            "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "dog", "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
}  # fmt: skip
LINKS = [[1, 4, 0, 3, 0, "MODEL"], [2, 6, 0, 3, 1, "CONDITIONING"], [3, 7, 0, 3, 2, "CONDITIONING"]]
LINKS += [[4, 5, 0, 3, 3, "LATENT"], [5, 4, 1, 6, 0, "CLIP"], [6, 4, 1, 7, 0, "CLIP"]]
FLUX = {
    "1": {"class_type": "SamplerCustomAdvanced", "inputs": {
        "noise": ["2", 0], "guider": ["3", 0], "sampler": ["4", 0], "sigmas": ["5", 0], "latent_image": ["6", 0]}},
    "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 9}},
    "3": {"class_type": "BasicGuider", "inputs": {"model": ["7", 0], "conditioning": ["8", 0]}},
    "4": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
    "5": {"class_type": "BasicScheduler", "inputs": {"model": ["7", 0], "scheduler": "simple", "steps": 4}},
    "6": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 1024, "height": 768}},
    "7": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux1-dev.safetensors"}},
    "8": {"class_type": "FluxGuidance", "inputs": {"guidance": 3.5, "conditioning": ["9", 0]}},
    "9": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}},
}  # fmt: skip
INVOKEAI = {
    "positive_prompt": "a cat", "negative_prompt": "dog", "seed": 7, "steps": 25, "cfg_scale": 6.5, "width": 512,
    "height": 640, "scheduler": "euler", "model": {"model_name": "v1-5", "hash": "blake3:abc"},
}  # fmt: skip
OLD_INVOKEAI = {
    "model_weights": "v1-5", "model_hash": "abc",
    "image": {
        "prompt": [{"prompt": "a cat [dog]", "weight": 1}], "steps": 25, "cfg_scale": 6.5, "seed": 7, "width": 512,
        "height": 640, "sampler": "k_euler",
    },
}  # fmt: skip


def png(path: Path, **texts: str) -> Path:
    """A PNG with text chunks."""
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name.replace("__", "-"), text)
    GREY.save(path, pnginfo=info)
    return path


@pytest.mark.oracle
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_other_readers_read_ours(ldmrt: Any, bundle: Path, tmp_path: Path, suffix: str) -> None:
    sd_parsers = pytest.importorskip("sd_parsers")
    words = ("--steps", 3, "--seed", 9, "--guidance", 4.5, "--scheduler", "dpmpp_2m_karras", "--negative", NEGATIVE)
    out = tmp_path / f"a.{suffix}"
    assert ldmrt("generate", bundle, PROMPT, *words, "-o", out).code == 0
    found = sd_parsers.ParserManager().parse(out)
    (sampler,) = found.samplers
    assert found.generator.value == "AUTOMATIC1111"
    assert [each.value for each in sampler.prompts] == [PROMPT]
    assert [each.value for each in sampler.negative_prompts] == [NEGATIVE]
    assert sampler.name == "DPM++ 2M"
    expected = {"steps": "3", "cfg_scale": "4.5", "seed": "9", "scheduler": "Karras"}
    assert sampler.parameters == expected
    assert sampler.model.name == bundle.name
    assert found.metadata["Size"] == "16x16"
    own = json.loads(ldmrt("info", out, "--json").out)[0]
    assert (own["program"], own["prompt"], own["negative_prompt"]) == ("ldmrt", PROMPT, NEGATIVE)
    assert own["parameters"]["made"]["bundle_sha256"].startswith(sampler.model.hash)
    assert own["parameters"]["made"]["certificate"] == "it has no parity certificate"
    assert own["parameters"]["made"]["versions"]["numpy"] == np.__version__


CASES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "AUTOMATIC1111's web UI": (
        {"parameters": INFOTEXT},
        {"steps": 20, "sampler": "DPM++ 2M", "scheduler": "Karras", "guidance": 7.5, "seed": 42, "width": 512,
         "height": 768, "model": "v1-5", "model_hash": "0123456789", "Lora hashes": "a: b, c: d"},
    ),
    "ComfyUI": (
        {"prompt": json.dumps(COMFYUI), "workflow": json.dumps({"links": LINKS})},
        {"steps": 25, "sampler": "euler", "scheduler": "karras", "guidance": 6.5, "seed": 7, "width": 512,
         "height": 640, "model": "v1-5.safetensors"},
    ),
    "InvokeAI": (
        {"invokeai_metadata": json.dumps(INVOKEAI)},
        {"steps": 25, "sampler": "euler", "guidance": 6.5, "seed": 7, "width": 512, "height": 640, "model": "v1-5",
         "model_hash": "blake3:abc"},
    ),
    "InvokeAI 2": (
        {"sd__metadata": json.dumps(OLD_INVOKEAI)},
        {"steps": 25, "sampler": "k_euler", "guidance": 6.5, "seed": 7, "width": 512, "height": 640, "model": "v1-5",
         "model_hash": "abc"},
    ),
}  # fmt: skip


@pytest.mark.oracle
@pytest.mark.parametrize("name", CASES)
def test_ours_reads_what_others_wrote(ldmrt: Any, tmp_path: Path, name: str) -> None:
    """By the values that stand here, and by sd-parsers."""
    sd_parsers = pytest.importorskip("sd_parsers")
    texts, settings = CASES[name]
    path = png(tmp_path / "a.png", **texts)
    (found,) = json.loads(ldmrt("info", path, "--json").out)
    assert found["program"] == name.removesuffix(" 2")
    assert {key: found["settings"].get(key) for key in settings} == settings
    assert found["parameters"] is None
    theirs = sd_parsers.ParserManager().parse(path)
    (sampler,) = theirs.samplers
    assert [found["prompt"]] == [each.value for each in sampler.prompts]
    assert [found["negative_prompt"]] == [each.value for each in sampler.negative_prompts]
    assert found["settings"]["sampler"] == sampler.name
    assert str(found["settings"]["model"]) == sampler.model.name
    assert str(found["settings"]["seed"]) == str(sampler.parameters["seed"])
    assert float(found["settings"]["guidance"]) == float(sampler.parameters["cfg_scale"])


def test_the_model_of_later_invokeais(ldmrt: Any, tmp_path: Path) -> None:
    said = {**INVOKEAI, "model": {"key": "1-2", "name": "v1-5", "hash": "blake3:abc", "base": "sd-1"}}
    (found,) = json.loads(ldmrt("info", png(tmp_path / "a.png", invokeai_metadata=json.dumps(said)), "--json").out)
    assert (found["settings"]["model"], found["settings"]["model_hash"]) == ("v1-5", "blake3:abc")


def test_a_graph_with_its_parts_in_nodes_of_their_own(ldmrt: Any, tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", prompt=json.dumps(FLUX))
    (found,) = json.loads(ldmrt("info", path, "--json").out)
    assert (found["program"], found["prompt"], found["negative_prompt"]) == ("ComfyUI", "a cat", "")
    expected = {"seed": 9, "steps": 4, "sampler": "euler", "scheduler": "simple", "guidance": 3.5, "width": 1024}
    assert expected.items() <= found["settings"].items()


def test_a_computed_prompt_is_said_to_be_one(ldmrt: Any, tmp_path: Path) -> None:
    graph = json.dumps(COMFYUI).replace('"a cat"', '["9", 0]')
    path = png(tmp_path / "a.png", prompt=graph)
    (found,) = json.loads(ldmrt("info", path, "--json").out)
    assert (found["prompt"], found["negative_prompt"]) == (None, "dog")
    assert "computed by nodes" in ldmrt("info", path).out


def test_the_guidance_of_invokeais_flux(ldmrt: Any, tmp_path: Path) -> None:
    said = {key: value for key, value in INVOKEAI.items() if key != "cfg_scale"} | {"guidance": 4}
    (found,) = json.loads(ldmrt("info", png(tmp_path / "a.png", invokeai_metadata=json.dumps(said)), "--json").out)
    assert found["settings"]["guidance"] == 4


def test_a_graph_in_a_webp(ldmrt: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110] = f"prompt:{json.dumps(COMFYUI)}"
    GREY.save(tmp_path / "a.webp", exif=exif)
    (found,) = json.loads(ldmrt("info", tmp_path / "a.webp", "--json").out)
    assert (found["program"], found["prompt"], found["settings"]["seed"]) == ("ComfyUI", "a cat", 7)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_is_no_number_is_null_in_json(ldmrt: Any, tmp_path: Path, number: str) -> None:
    """Python reads these words, and ComfyUI writes NaN, but JSON has neither."""

    def refused(word: str) -> None:
        raise ValueError(word)

    graph = json.dumps(COMFYUI).replace('"seed": 7', f'"seed": {number}')
    old = json.dumps({"prompt": "a cat", "seed": 1, "made": {"values": [number, {"x": 2}]}}).replace(
        f'"{number}"', number
    )
    paths = png(tmp_path / "a.png", prompt=graph), png(tmp_path / "b.png", ldmrt=old)
    theirs, own = json.loads(ldmrt("info", *paths, "--json").out, parse_constant=refused)
    assert (theirs["settings"]["seed"], theirs["settings"]["steps"]) == (None, 25)
    assert own["parameters"]["made"]["values"] == [None, {"x": 2}]
    assert ldmrt("info", *paths).code == 0


def test_tables_for_people(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    assert ldmrt("generate", bundle, "two pears", "--steps", 2, "-o", out).code == 0
    ran = ldmrt("info", out, png(tmp_path / "b.png", parameters=INFOTEXT))
    assert ran.code == 0
    for word in ("ldmrt", "two pears", "certificate", "onnxruntime", "AUTOMATIC1111", "DPM++ 2M", "0123456789"):
        assert word in ran.out


@pytest.mark.parametrize("texts", [{}, {"parameters": "a cat"}, {"ldmrt": "[1]"}, {"prompt": "{"}, {"prompt": "{}"}])
def test_a_file_that_says_nothing_is_refused(ldmrt: Any, tmp_path: Path, texts: dict[str, str]) -> None:
    path = png(tmp_path / "a.png", **texts)
    for command in ("info", "replay"):
        ran = ldmrt(command, path)
        assert (ran.code, "a.png does not say how it was drawn" in ran.error) == (2, True)


def test_a_file_that_is_damaged_or_of_another_program_is_refused(ldmrt: Any, tmp_path: Path) -> None:
    whole = png(tmp_path / "a.png", parameters=INFOTEXT).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    for name in ("cut.png", "text.png"):
        ran = ldmrt("info", tmp_path / name)
        assert (ran.code, f"{name}; expected an image" in ran.error) == (2, True), ran.error
    ran = ldmrt("replay", tmp_path / "a.png")
    assert (ran.code, "a.png was not drawn by ldmrt, or has lost its record" in ran.error) == (2, True)


def test_files_that_can_be_read_are_shown_beside_others(ldmrt: Any, tmp_path: Path) -> None:
    whole = [png(tmp_path / name, parameters=INFOTEXT) for name in ("a.png", "b.png")]
    (tmp_path / "text.png").write_text("no image")
    files = (whole[0], tmp_path / "text.png", png(tmp_path / "none.png"), whole[1])
    ran = ldmrt("info", *files, "--json")
    assert (ran.code, [each["file"] for each in json.loads(ran.out)]) == (2, list(map(str, whole)))
    assert ["text.png" in line for line in ran.err.splitlines() if line.startswith("error: ")] == [True, False]
    ran = ldmrt("info", *files)
    assert (ran.code, ran.out.count("DPM++ 2M"), ran.err.count("error: ")) == (2, 2, 2)
    ran = ldmrt("info", *files[1:3], "--json")
    assert (ran.code, ran.out) == (2, "")


@pytest.mark.parametrize(
    "text",
    [
        Infotext("a cat", "dog", {"Steps": "20", "Sampler": "Euler a", "Model": "a, b: c"}),
        Infotext("a cat\nin two lines", "", {"Steps": "1", "Seed": "2", "Model": 'quoted "x", y'}),
        Infotext("", "dog\nugly", {"Steps": "1", "Seed": "2", "Size": "3x4"}),
    ],
)
def test_a_text_is_read_as_it_was_written(text: Infotext) -> None:
    assert read_infotext(str(text)) == text


def test_fewer_settings_are_a_prompt() -> None:
    assert read_infotext("a cat\nSteps: 20, Seed: 1") is None
    found = read_infotext(INFOTEXT)
    assert found is not None
    assert (found.prompt, found.negative) == ("a cat, (masterpiece:1.2)\nSteps: none", "dog\nugly")


@pytest.mark.parametrize(
    ("scheduler", "names"),
    [
        ("euler_a", ("Euler a", "")),
        ("dpmpp_2m_karras", ("DPM++ 2M", "Karras")),
        ("dpm2_a", ("DPM2 a", "")),
        ("flow_euler", ("flow_euler", "")),
    ],
)
def test_samplers_have_the_web_uis_names(scheduler: str, names: tuple[str, str]) -> None:
    assert names_of(scheduler) == names


def test_a_second_pass_is_written_as_the_web_ui_writes_it(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    """Steps are those that are drawn, the size is the first pass's; `ldmrt info` reads it from other programs too."""
    words = ("--steps", 4, "--width", 16, "--height", 8, "--hires", 2, "--hires-strength", 0.7, "--hires-steps", 5)
    path = tmp_path / "a.png"
    assert ldmrt("generate", bundle, PROMPT, *words, "--hires-upscaler", "latent-bicubic", "-o", path).code == 0
    with Image.open(path) as image:
        assert image.size == (32, 16)
        said = read_infotext(image.text["parameters"])
        assert json.loads(image.text["ldmrt"])["hires"] == 2
    assert said is not None
    expected = {"Size": "16x8", "Denoising strength": "0.7", "Hires upscale": "2.0", "Hires steps": "3"}
    assert {name: said.settings[name] for name in expected} == expected
    assert said.settings["Hires upscaler"] == "Latent (bicubic)"
    text = PngInfo()
    text.add_text("parameters", str(said).replace("Version: ldmrt", "Version: v1.10.1 not"))
    GREY.save(tmp_path / "theirs.png", pnginfo=text)
    settings = json.loads(ldmrt("info", tmp_path / "theirs.png", "--json").out)[0]["settings"]
    assert (settings["Hires upscale"], settings["Hires steps"]) == (2.0, 3)


def test_variations_are_written_as_the_web_ui_writes_them(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    words = ("-n", 2, "--steps", 2, "--seed", 3, "--variation-seed", 9, "--variation-strength", 0.3)
    assert ldmrt("generate", bundle, PROMPT, *words, "-o", path).code == 0
    for number in range(2):
        with Image.open(tmp_path / f"a-0{number}.png") as image:
            said, own = read_infotext(image.text["parameters"]), json.loads(image.text["ldmrt"])
        assert said is not None
        keys = ("Seed", "Variation seed", "Variation seed strength")
        assert [said.settings[key] for key in keys] == ["3", str(9 + number), "0.3"]
        assert (own["seed"], own["variation_seed"]) == (3, 9 + number)
        assert ldmrt("replay", tmp_path / f"a-0{number}.png", "--bundle", bundle).code == 0


@pytest.mark.parametrize(
    ("asked", "schedule"),
    [((20, 0.7), (28, 20)), ((20, 0.75), (26, 20)), ((15, 1.0), (15, 15)), ((30, 0.3), (100, 30))],
)
def test_a_second_pass_of_the_web_ui_is_asked_for(asked: tuple[int, float], schedule: tuple[int, int]) -> None:
    """`setup_img2img_steps`: the web UI draws all steps, of a schedule of int(steps / strength)."""
    fields = hires_fields(2.0, *asked, "Latent (nearest)")
    assert (fields["hires_steps"], int(fields["hires_steps"] * fields["hires_strength"])) == schedule
    assert (fields["hires"], fields["hires_upscaler"]) == (2.0, "latent-nearest")
